"""A saved adapter is a standard PEFT adapter: plain PEFT loads it and gives the same logits."""

from __future__ import annotations

import json

import pytest
import torch

from causal_core.checkpoints.checkpoint import load_weights
from causal_core.checkpoints.contents import MANIFEST
from causal_core.config import LoraSection
from causal_core.errors import CheckpointError
from causal_core.model.causal_model import build_model
from causal_core.run import loop
from causal_core.run.context import LocalContext
from tests.tiny import norms_in_float64
from tests.tiny_run import tiny_config

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tiny_model_directory, tiny_data, tmp_path_factory):
    run = tmp_path_factory.mktemp("trained")
    config = tiny_config(
        tiny_model_directory, tiny_data, run, train={"max_steps": 2, "learning_rate": 0.05}
    )
    loop.train(config, LocalContext(run, CPU))
    return run / "best"


def base_of(directory):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


@torch.no_grad()
def test_plain_peft_gives_the_same_logits(trained, tiny_model_directory, monkeypatch):
    from peft import PeftModel

    norms_in_float64(monkeypatch)
    ours = build_model(base_of(tiny_model_directory), LoraSection(rank=2, alpha=4), seed=5).eval()
    load_weights(trained, ours)
    ours.double()
    theirs = PeftModel.from_pretrained(base_of(tiny_model_directory), str(trained)).eval().double()
    ids = torch.randint(3, 200, (2, 17), generator=torch.Generator().manual_seed(0))
    plain = base_of(tiny_model_directory)(input_ids=ids).logits
    expected = theirs(input_ids=ids).logits
    assert not torch.allclose(plain.double(), expected, atol=1e-3)  # the adapter does something
    found = ours.peft_model(input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_a_checkpoint_holds_no_pickle_and_no_base_weights(trained):
    names = {p.name for p in trained.iterdir()}
    assert names == {
        "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja",
        "tokenizer.json", "tokenizer_config.json", "causal_projection.safetensors",
        "optimizer.safetensors", "trainer_state.json", "config.yaml", "manifest.json",
    }  # fmt: skip
    manifest = json.loads((trained / MANIFEST).read_text())
    assert set(manifest["files"]) == names - {MANIFEST}


def test_another_lora_shape_is_refused_by_name_and_shape(trained, tiny_model_directory):
    other = build_model(base_of(tiny_model_directory), LoraSection(rank=3), seed=0)
    before = {n: p.detach().clone() for n, p in other.trainable_parameters().items()}
    with pytest.raises(CheckpointError, match=r"lora_A.*shape \(2, 32\), the model wants \(3, 32"):
        load_weights(trained, other)
    for name, parameter in other.trainable_parameters().items():
        assert torch.equal(parameter, before[name])  # nothing was half-loaded


def test_fewer_target_modules_are_refused(trained, tiny_model_directory):
    lora = LoraSection(rank=2, target_modules=["q_proj"])
    other = build_model(base_of(tiny_model_directory), lora, seed=0)
    with pytest.raises(CheckpointError, match="is unexpected"):
        load_weights(trained, other)
