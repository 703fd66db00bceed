"""Adapters of others: they compute what plain PEFT computes with them, or are refused.

1. Whatever ranks, scalings and modules an adapter has, its logits are those of plain PEFT.
2. What is not plain LoRA, is damaged, is a pickle or is made for another base is refused in a
   sentence, and nothing of the model has changed by then.
3. A name for its base fits the model under another path.
"""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from causal_core.checkpoints.adapter import (
    ADAPTER_CONFIG,
    adapter_directory,
    load_adapter,
    names_same_base,
    read_adapter,
    with_fresh_adapter,
)
from causal_core.checkpoints.contents import ADAPTER
from causal_core.errors import CheckpointError
from tests.tiny import norms_in_float64

PLAIN = {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"]}
PATTERNS = {
    **PLAIN,
    "use_rslora": True,
    "rank_pattern": {"down_proj": 2, "layers.1.self_attn.q_proj": 5},
    "alpha_pattern": {"q_proj": 20.0},
}


def base_of(directory):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


def write_adapter(model_directory, target, **config):
    """An adapter of plain PEFT whose every matrix does something."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    model = get_peft_model(base_of(model_directory), LoraConfig(task_type="CAUSAL_LM", **config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    model.save_pretrained(str(target), save_embedding_layers=False)
    return target


@pytest.fixture
def adapter(tiny_model_directory, tmp_path):
    return write_adapter(tiny_model_directory, tmp_path / "adapter", **PLAIN)


@torch.no_grad()
@pytest.mark.parametrize("config", [PLAIN, PATTERNS], ids=["plain", "patterns"])
def test_logits_are_those_of_plain_peft(config, tiny_model_directory, tmp_path, monkeypatch):
    from peft import PeftModel

    norms_in_float64(monkeypatch)
    directory = write_adapter(tiny_model_directory, tmp_path / "adapter", **config)
    read = read_adapter(directory)
    ours = with_fresh_adapter(base_of(tiny_model_directory), read).eval()
    ids = torch.randint(3, 200, (2, 17), generator=torch.Generator().manual_seed(0))
    plain = base_of(tiny_model_directory).double()(input_ids=ids).logits
    theirs = PeftModel.from_pretrained(base_of(tiny_model_directory), str(directory)).eval()
    expected = theirs.double()(input_ids=ids).logits
    assert not torch.allclose(plain, expected, atol=1e-3)  # the adapter does something
    fresh = ours.double().peft_model(input_ids=ids).logits
    torch.testing.assert_close(fresh, plain, rtol=0, atol=1e-10)
    load_adapter(read, ours)
    found = ours.peft_model(input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def described(**changes):
    def change(directory):
        path = directory / ADAPTER_CONFIG
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def tensors(of):
    def change(directory):
        save_file(of(load_file(directory / ADAPTER)), directory / ADAPTER)

    return change


def pickled(directory):
    (directory / ADAPTER).rename(directory / "adapter_model.bin")


def cut_off(directory):
    (directory / ADAPTER).write_bytes((directory / ADAPTER).read_bytes()[:-7])


FIRST = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: (d / ADAPTER_CONFIG).unlink(), "holds no PEFT adapter"),
        (lambda d: (d / ADAPTER_CONFIG).write_text("{"), "damaged"),
        (pickled, "is a pickle, which can run code and is never loaded"),
        (cut_off, "damaged"),
        (described(peft_type="IA3"), "only adapters of the kind LORA"),
        (described(use_dora=True), "'use_dora' is 'True', and only plain LoRA"),
        (described(bias="all"), "'bias' is 'all'"),
        (described(modules_to_save=["lm_head"]), "'modules_to_save'"),
        (described(init_lora_weights="pissa"), "'init_lora_weights' is 'pissa'"),
        (described(rank_pattern={"(a+)+$": 2}), "a regular expression of someone else's"),
        (described(r=4), "says rank 4"),
        (described(r="3"), "r: Input should be a valid integer"),
        (tensors(lambda t: {}), "holds no tensors"),
        (tensors(lambda t: {**t, "lm_head.weight": torch.ones(2)}), "'lm_head.weight' is no"),
        (tensors(lambda t: {**t, FIRST: t[FIRST] * torch.nan}), "not finite"),
        (tensors(lambda t: {k: v for k, v in t.items() if k != FIRST}), "has no lora_A"),
    ],
)
def test_what_is_not_a_whole_plain_adapter_is_refused(adapter, change, message):
    change(adapter)
    with pytest.raises(CheckpointError) as refused:
        read_adapter(adapter)
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {k.replace("layers.1", "layers.7"): v for k, v in t.items()}, "layers.7"),
        (lambda t: {k.replace("model.layers", "layers"): v for k, v in t.items()}, "is no linear"),
        (
            lambda t: {k: v[:, :-2].clone() if "lora_A" in k else v for k, v in t.items()},
            "inputs and",
        ),
    ],
)
def test_an_adapter_of_another_base_is_refused(adapter, tiny_model_directory, change, message):
    tensors(change)(adapter)
    base = base_of(tiny_model_directory)
    with pytest.raises(CheckpointError, match="give the base model") as refused:
        with_fresh_adapter(base, read_adapter(adapter))
    assert message in str(refused.value)
    assert not any("lora" in name for name, _ in base.named_modules())


def test_an_adapter_fits_no_room_of_another_shape(adapter, tiny_model_directory, tmp_path):
    wider = write_adapter(tiny_model_directory, tmp_path / "wider", **{**PLAIN, "r": 4})
    model = with_fresh_adapter(base_of(tiny_model_directory), read_adapter(wider))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(CheckpointError, match=r"has shape \(3, \d+\), the model wants \(4, \d+\)"):
        load_adapter(read_adapter(adapter), model)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_its_content_is_its_fingerprint_wherever_it_lies(adapter, tmp_path):
    copy = shutil.copytree(adapter, tmp_path / "copy")
    assert read_adapter(copy).fingerprint() == read_adapter(adapter).fingerprint()
    described(lora_alpha=7)(copy)
    assert read_adapter(copy).fingerprint() != read_adapter(adapter).fingerprint()


def test_places(adapter, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(adapter, run / "best")
    assert adapter_directory(str(run)) == run / "best"
    assert adapter_directory(str(adapter)) == adapter
    for place in ("./nowhere", "/nowhere/at/all", "nowhere"):
        with pytest.raises(CheckpointError, match="no such directory"):
            adapter_directory(place)


def test_a_base_under_another_path_is_the_same():
    assert names_same_base("owner/Llama-X", "/models/llama-x", "/models/llama-x")
    assert names_same_base(None, "anything", "anything")
    assert not names_same_base("owner/Llama-X", "/models/llama-y", "/models/llama-y")
