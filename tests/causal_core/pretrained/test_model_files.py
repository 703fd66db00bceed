"""What is wrong with a model's files is one clear sentence, before anything is trained."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from causal_core.config import ModelSection
from causal_core.errors import ModelError, UserError
from causal_core.pretrained.loading import (
    base_without_weights,
    check_weights,
    load_architecture,
    load_base,
    load_tokenizer,
    model_limits,
    resolve_model,
)
from causal_core.pretrained.model_files import check_model_directory, check_weight_files
from causal_core.tokens.run_data import load_encoder, load_run_data, load_split
from tests.tiny_run import tiny_config

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 269060552\n"
WEIGHTS = "model.safetensors"


@pytest.fixture
def model(tiny_model_directory, tmp_path):
    return shutil.copytree(tiny_model_directory, tmp_path / "model")


def cut(path, kept):
    path.write_bytes(path.read_bytes()[:kept])


def of_torch(model):
    weights = load_file(model / WEIGHTS)
    torch.save(weights, model / "pytorch_model.bin")
    (model / WEIGHTS).unlink()


def in_parts(model):
    """The weights as two files and their index, of which the second is gone."""
    weights = load_file(model / WEIGHTS)
    (model / WEIGHTS).unlink()
    names = sorted(weights)
    where = {name: f"part-{1 + (i % 2)}.safetensors" for i, name in enumerate(names)}
    for part in set(where.values()):
        save_file(
            {n: weights[n] for n in names if where[n] == part}, model / part, {"format": "pt"}
        )
    index = {"metadata": {}, "weight_map": where}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("config.json", {"num_attention_heads": 0}, "ZeroDivisionError"),
        ("config.json", {"hidden_size": "32"}, "Field 'hidden_size' expected int"),
        ("config.json", {"rope_parameters": [1]}, "rope_parameters"),
        ("config.json", {"model_type": ["llama"]}, "TypeError"),
        ("config.json", {"hidden_act": "system"}, "'system'"),
        ("config.json", {"dtype": "float999"}, "float999"),
        ("config.json", {"text_config": {"hidden_size": 4}}, "missing or damaged"),
        ("tokenizer.json", {"model": {"type": "BPE"}}, "missing or damaged"),
        ("tokenizer.json", {"added_tokens": 3}, "missing or damaged"),
        ("tokenizer_config.json", {"eos_token": [1]}, "missing or damaged"),
    ],
)
def test_odd_files_are_one_line_whatever_the_library_says_of_them(model, name, change, said):
    described = json.loads((model / name).read_text())
    (model / name).write_text(json.dumps({**described, **change}))
    section = ModelSection(name_or_path=str(model))
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        if name == "config.json":
            base_without_weights(load_architecture(section), section)
        load_tokenizer(section)
    told = str(caught.value)
    assert said in told and "network" not in told and "\n" not in told


def test_code_of_a_model_is_not_run_and_its_files_are_not_called_damaged(model, tmp_path):
    described = json.loads((model / "config.json").read_text())
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}
    (model / "config.json").write_text(json.dumps({**described, **own}))
    (model / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ModelError, match="custom code") as caught:
        load_architecture(ModelSection(name_or_path=str(model)))
    assert "damaged" not in str(caught.value) and "trust_remote_code" in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"vocab_size": 100}, "has the shape"),
        ({"num_hidden_layers": 3}, "would be random numbers"),
        ({"num_hidden_layers": 1}, "asks for 1 layers, and its weights have one of number 1"),
        ({"attention_bias": True}, "would be random numbers"),
        ({"tie_word_embeddings": True}, None),
    ],
)
def test_weights_that_are_not_those_of_the_config_are_no_random_numbers(model, option, said):
    described = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**described, **option}))
    section = ModelSection(name_or_path=str(model))
    if said is None:
        load_base(section, torch.device("cpu"))
        return
    with pytest.raises(ModelError, match=said):
        load_base(section, torch.device("cpu"))


def test_a_layer_that_is_not_among_the_weights_is_no_random_numbers(model):
    weights = load_file(model / WEIGHTS)
    kept = {name: tensor for name, tensor in weights.items() if "layers.1.mlp" not in name}
    save_file(kept, model / WEIGHTS, {"format": "pt"})
    with pytest.raises(ModelError, match="3 tensors that its config"):
        load_base(ModelSection(name_or_path=str(model)), torch.device("cpu"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_that_are_no_numbers_are_refused_by_name(model, value, dtype):
    weights = load_file(model / WEIGHTS)
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    save_file(weights, model / WEIGHTS, {"format": "pt"})
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj\.weight.* not all numbers"):
        load_base(ModelSection(name_or_path=str(model), dtype=dtype), torch.device("cpu"))


@pytest.mark.parametrize("place", ["../elsewhere/part.safetensors", "/etc/part.safetensors"])
def test_weights_outside_of_the_directory_are_not_read(model, place):
    in_parts(model)
    index = {"metadata": {}, "weight_map": {"lm_head.weight": place}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="outside of the model's directory"):
        check_weights(ModelSection(name_or_path=str(model)))


def test_whole_models_pass(model):
    section = ModelSection(name_or_path=str(model))
    check_weights(section)
    in_parts(model)
    check_weights(section)
    assert load_base(section, torch.device("cpu")) is not None
    for part in model.glob("*part*"):
        part.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda m: (m / WEIGHTS).write_bytes(POINTER), r"safetensors is a Git LFS pointer"),
        (lambda m: cut(m / WEIGHTS, (m / WEIGHTS).stat().st_size // 2), r"header says [\d,]+: it "),
        (lambda m: cut(m / WEIGHTS, 5), r"no whole safetensors file \(5 bytes\)"),
        (lambda m: (m / WEIGHTS).write_bytes(b""), r"no whole safetensors file"),
        (lambda m: (m / WEIGHTS).write_bytes(b"<html>" * 200), r"no whole safetensors file"),
        (
            lambda m: (m / WEIGHTS).write_bytes(b"\x04" + bytes(7) + b"null"),
            r"no readable safetensors header",
        ),
        (lambda m: (m / WEIGHTS).unlink(), r"has a config\.json but no weights"),
        (
            lambda m: (in_parts(m), (m / "part-2.safetensors").unlink()),
            r"part-2\.safetensors is missing",
        ),
        (
            lambda m: (of_torch(m), cut(m / "pytorch_model.bin", 4096)),
            r"no whole file of torch weights",
        ),
    ],
)
def test_damaged_weights_are_named(model, damage, message):
    damage(model)
    with pytest.raises(ModelError, match=message):
        check_weights(ModelSection(name_or_path=str(model)))
    with pytest.raises(ModelError, match=message):
        load_base(ModelSection(name_or_path=str(model)), torch.device("cpu"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda m: (m / "config.json").unlink(), r"no config\.json"),
        (lambda m: (m / "config.json").write_bytes(POINTER), r"config\.json is a Git LFS pointer"),
        (lambda m: (m / "config.json").write_text("{"), r"config\.json is not valid JSON"),
        (lambda m: (m / "config.json").write_text("[]"), r"config\.json is no JSON object"),
        (
            lambda m: (m / "config.json").write_text('{"num_hidden_layers": 10000000}'),
            r"asks for 'num_hidden_layers': 10000000, and no model has more than 10,000",
        ),
        (
            lambda m: (m / "config.json").write_text('{"text_config": {"n_layer": 20000}}'),
            r"asks for 'n_layer': 20000",
        ),
        (lambda m: (m / "tokenizer.json").write_bytes(POINTER), r"tokenizer\.json is a Git LFS"),
        (
            lambda m: (m / "adapter_config.json").write_text(
                json.dumps({"base_model_name_or_path": "meta/x\x1b[31m"})
            ),
            r"holds an adapter .*not a whole model.*x\\x1b",
        ),
        (shutil.rmtree, r"no such directory"),
    ],
)
def test_a_directory_that_is_no_model_is_named(model, damage, message):
    damage(model)
    for use in (resolve_model, load_tokenizer, model_limits):
        with pytest.raises(ModelError, match=message):
            use(ModelSection(name_or_path=str(model)))


def test_a_relative_directory_is_looked_at_too(model, monkeypatch):
    (model / "config.json").unlink()
    monkeypatch.chdir(model.parent)
    with pytest.raises(ModelError, match=r"no config\.json"):
        resolve_model(ModelSection(name_or_path="model"))


def described(model, **changes):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, **changes}))


def longest_of(data):
    return max(data.train.longest(), data.validation.longest())


def test_rows_longer_than_the_models_positions_are_refused(model, tiny_data, tmp_path):
    config = tiny_config(model, tiny_data, tmp_path / "run")
    longest = longest_of(load_run_data(config))
    described(model, max_position_embeddings=longest)
    load_run_data(config)
    described(model, max_position_embeddings=longest - 1)
    with pytest.raises(UserError, match=rf"{longest} tokens, more than the {longest - 1} posit"):
        load_run_data(config)
    config.data.max_length, config.data.overlong = longest - 1, "drop"
    assert longest_of(load_run_data(config)) < longest


def test_rows_for_which_longrope_takes_other_frequencies_are_refused(model, tiny_data, tmp_path):
    config = tiny_config(model, tiny_data, tmp_path / "run")
    longest = longest_of(load_run_data(config))
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4,
            "long_factor": [2.0] * 4, "original_max_position_embeddings": longest}  # fmt: skip
    described(model, rope_parameters=rope, max_position_embeddings=4 * longest)
    load_run_data(config)
    rope["original_max_position_embeddings"] -= 1
    described(model, rope_parameters=rope)
    with pytest.raises(UserError, match=rf"longrope.*data\.max_length={longest - 1}"):
        load_run_data(config)
    nested = {"full_attention": rope, "sliding_attention": {"rope_type": "default"}}
    described(model, model_type="gemma3_text", rope_parameters=nested)
    assert model_limits(config.model).same_rotation == longest - 1


def largest_token(row):
    injected = [
        span
        for injection in row.injections
        for span in (injection.prompt, injection.answer, injection.witness, injection.attack_answer)
    ]
    return max(map(max, filter(None, (row.system, row.benign, row.counterfactual,
                                      row.benign_answer, *injected))))  # fmt: skip


def test_tokens_without_an_embedding_are_named(model, tiny_data, tmp_path):
    config = tiny_config(model, tiny_data, tmp_path / "run")
    vocabulary = model_limits(config.model).vocabulary
    # More rows than the tokenizer has, or fewer of which none is used, are both fine.
    encoder = load_encoder(config)
    assert max(encoder.tokenizer.get_vocab().values()) == vocabulary - 1
    train = load_split(config, encoder, config.data.train)
    used = max(map(largest_token, map(train.tokens, range(len(train)))))
    described(model, vocab_size=used + 1)
    load_split(config, encoder, config.data.train)
    described(model, vocab_size=used)
    with pytest.raises(UserError, match=rf"has the token {used} .*embedding has {used} rows"):
        load_split(config, encoder, config.data.train)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_file_that_the_kernel_makes_up_is_refused_unopened(model, name):
    (model / name).unlink()
    (model / name).symlink_to("/proc/kmsg")  # a reader would wait for the next message
    with pytest.raises(ModelError, match="made up by the kernel, not a regular file"):
        resolve_model(ModelSection(name_or_path=str(model)))


def test_a_model_that_may_not_be_read_is_said_as_such(model, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, _: False)
    with pytest.raises(ModelError, match="may not be read by this user: give permission"):
        check_model_directory(model)
    with pytest.raises(ModelError, match=r"model\.safetensors may not be read by this user"):
        check_weight_files(model)
