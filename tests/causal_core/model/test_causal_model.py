"""Building the model: what trains, what does not, and what is refused; NF4 on CPU."""

from __future__ import annotations

import json

import pytest
import torch

from causal_core.config import LoraSection, LossSection, ModelSection
from causal_core.config_file import parse_config
from causal_core.config_lora import LLAMA_PROJECTIONS
from causal_core.errors import ModelError
from causal_core.loss.objective import needs_of
from causal_core.memory import predict
from causal_core.model.causal_model import build_model, count_parameters, parameter_counts
from causal_core.model.targets import target_modules
from causal_core.pretrained.loading import load_base, load_tokenizer, resolve_model
from causal_core.trees.packing import cut_micro_batches
from tests.causal_core.model.architectures import ARCHITECTURES, Architecture
from tests.tiny import micro_batch_gradient, random_triplets, tiny_base, tiny_model
from tests.tiny_run import write_tiny_model

CPU = torch.device("cpu")


def test_only_adapter_and_head_train():
    model = tiny_model()
    names = list(model.trainable_parameters())
    assert {n.split(".")[0] for n in names} == {"peft_model", "projection"}
    assert all("lora_" in n or n.startswith("projection.") for n in names)
    assert len([n for n in names if "lora_" in n]) == 2 * 7 * 2  # layers x modules x (A, B)


def test_counting_a_model_that_cannot_be_loaded_is_one_sentence(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "no such architecture"}')
    config = parse_config({"model": {"name_or_path": str(tmp_path)}}, "test")
    with pytest.raises(ModelError, match=r"the configuration of .* cannot be loaded"):
        parameter_counts(config)


def test_parameter_counts_of_llama_2_7b_are_derived_not_quoted():
    """LoRA r 16 on seven modules of Llama-2-7B is 39,976,960; the head adds 33.6 M."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=32,
    )  # fmt: skip
    with torch.device("meta"):
        base = LlamaForCausalLM(config).requires_grad_(False)
        model = build_model(base, LoraSection(rank=16), seed=0)
    counts = count_parameters(model)
    assert counts["adapter"] == 39_976_960
    assert counts["projection"] == 2 * (4096 * 4096 + 4096) + 2 * 4096
    assert counts["base"] == 6_738_415_616


def test_initialisation_depends_on_the_seed_alone():
    torch.manual_seed(1)
    one = build_model(tiny_base(), LoraSection(rank=2), seed=7)
    torch.manual_seed(2)
    two = build_model(tiny_base(), LoraSection(rank=2), seed=7)
    for (name, a), b in zip(
        one.trainable_parameters().items(), two.trainable_parameters().values(), strict=True
    ):
        assert torch.equal(a, b), name


def test_a_target_module_that_does_not_exist_is_named():
    with pytest.raises(
        ModelError, match=r"c_attn not among the linear modules of LlamaForCausalLM.*q_proj"
    ):
        build_model(tiny_base(), LoraSection(target_modules=["c_attn"]), seed=0)


@pytest.mark.parametrize("module", ["lm_head", "embed_tokens"])
def test_what_cannot_be_trained_is_neither_taken_nor_offered(module):
    with pytest.raises(ModelError, match=f"{module} cannot be adapted") as refused:
        build_model(tiny_base(), LoraSection(target_modules=["q_proj", module]), seed=0)
    offered = str(refused.value).partition("choose from")[2]
    assert "down_proj" in offered and module not in offered


@pytest.mark.parametrize(
    ("kind", "auto"),
    [("llama", ["q_proj", "v_proj"]), ("phi3", ["qkv_proj"]), ("granite", ["q_proj", "v_proj"])],
)
def test_modules_of_an_architecture_by_one_word(kind, auto):
    architecture = next(a for a in ARCHITECTURES if a.kind == kind)
    base = architecture.base()
    assert target_modules(base, LoraSection(target_modules="auto")) == auto
    every = target_modules(base, LoraSection(target_modules="all-linear"))
    assert every == sorted(architecture.modules)
    model = build_model(base, LoraSection(target_modules="all-linear"), seed=0)
    assert len([n for n in model.trainable_parameters() if "lora_A" in n]) == 3 * len(every)


def test_auto_has_a_choice_for_every_architecture_of_the_table():
    for architecture in ARCHITECTURES:
        if architecture.refused is None:
            chosen = target_modules(architecture.base(), LoraSection(target_modules="auto"))
            assert chosen and "auto" not in chosen


@pytest.mark.parametrize("word", ["auto", "all-linear"])
def test_a_model_without_linear_modules_is_told_so(word):
    gpt2 = Architecture(
        "", "gpt2", "", {"n_embd": 32, "n_head": 4, "n_layer": 2}
    )  # its projections are of a class of its own
    with pytest.raises(ModelError, match="no linear modules"):
        target_modules(gpt2.base(), LoraSection(target_modules=word))


@pytest.mark.parametrize("chosen", ["all-linear", ["0", "Wq"]])
def test_linear_modules_named_as_others_are_told_so(chosen):
    """CTRL's are numbered, as its layers are, and PEFT would adapt whatever has the name."""
    ctrl = Architecture("", "ctrl", "", {"n_embd": 32, "dff": 64, "n_head": 4, "n_layer": 2}).base()
    with pytest.raises(ModelError, match=r"named '0', and so is transformer\.h\.0 .EncoderLayer"):
        target_modules(ctrl, LoraSection(target_modules=chosen))
    assert target_modules(ctrl, LoraSection(target_modules=["Wq"])) == ["Wq"]


def test_a_directory_without_a_model_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json in it"):
        resolve_model(ModelSection(name_or_path=str(tmp_path)))


@pytest.mark.parametrize("kind", ["vit", "no-such-architecture"])
def test_an_architecture_that_is_no_language_model_is_not_blamed_on_the_network(kind, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    config = parse_config({"model": {"name_or_path": str(tmp_path)}})
    with pytest.raises(ModelError, match=r"docs/models\.md") as refused:
        predict(config, micro_batch_tokens=256)
    assert "network" not in str(refused.value)


def test_a_missing_tokenizer_is_the_users_error(tiny_model_directory, tmp_path):
    (tmp_path / "config.json").write_text((tiny_model_directory / "config.json").read_text())
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_tokenizer(ModelSection(name_or_path=str(tmp_path)))


def test_nf4_runs_forward_and_backward_on_cpu(tmp_path):
    # bitsandbytes quantises in blocks of 64 and packs rows of its CPU kernel by 32.
    directory = write_tiny_model(tmp_path, hidden=128)
    plain = load_base(ModelSection(name_or_path=str(directory)), CPU)
    base = load_base(ModelSection(name_or_path=str(directory), quantization="nf4"), CPU)
    quantised = [p for p in base.parameters() if type(p).__name__ == "Params4bit"]
    assert len(quantised) == 2 * len(LLAMA_PROJECTIONS)
    assert all(p.quant_state.nested and p.dtype == torch.uint8 for p in quantised)
    model = build_model(base, LoraSection(rank=2, dropout=0.0), seed=0)
    assert count_parameters(model)["base"] == sum(p.numel() for p in plain.parameters())
    triplets, loss = random_triplets(4, seed=0), LossSection(lambda_causal=0.5, lambda_spurious=0.5)
    for micro in cut_micro_batches(triplets, needs_of(loss), 500):
        micro_batch_gradient(model, micro.batch, loss, triplets)
    for name, parameter in model.trainable_parameters().items():
        assert parameter.dtype == torch.float32
        assert torch.isfinite(parameter.grad).all(), name


def test_a_validation_leaves_the_gradient_of_an_nf4_model_as_it_is(tmp_path):
    directory = write_tiny_model(tmp_path, hidden=128)
    base = load_base(ModelSection(name_or_path=str(directory), quantization="nf4"), CPU)
    model = build_model(base, LoraSection(rank=2, dropout=0.0), seed=0)
    triplets, loss = random_triplets(2, seed=0), LossSection(lambda_causal=0.5, lambda_spurious=0.5)
    micro = cut_micro_batches(triplets, needs_of(loss), 500)[0]

    def gradient() -> list[torch.Tensor]:
        model.train().zero_grad()
        micro_batch_gradient(model, micro.batch, loss, triplets)
        return [p.grad.clone() for p in model.trainable_parameters().values()]

    before = gradient()
    with torch.no_grad():
        model.eval()(micro.batch)
    assert all(torch.equal(a, b) for a, b in zip(before, gradient(), strict=True))
