"""A run whose trees compute another model than the one that is served does not start.

1. Every architecture that is exact passes, in float32 and in bfloat16.
2. A fault of attention, of a layer or of the logits is refused, with both numbers.
3. A run asks before its first step, and leaves the model as it was.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from causal_core.config import LoraSection
from causal_core.errors import ModelError
from causal_core.model import attention, frozen_layers
from causal_core.model.causal_model import CausalModel, build_model
from causal_core.model.self_test import check_against_own_forward
from causal_core.run.context import LocalContext
from causal_core.run.loop import train
from tests.causal_core.model.architectures import ARCHITECTURES, Architecture
from tests.tiny import random_triplets
from tests.tiny_run import tiny_config, write_tiny_data, write_tiny_model

CPU = torch.device("cpu")
EXACT = {a.kind: a for a in ARCHITECTURES if a.refused is None}


def model_of(architecture: Architecture, dtype: torch.dtype = torch.float32) -> CausalModel:
    """With weights so large that attention is not flat, as in a trained model."""
    base = architecture.base().to(dtype)
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            if parameter.ndim >= 2 and "proj" in name:
                parameter.mul_(4.0)
    lora = LoraSection(rank=4, alpha=8, dropout=0.5, target_modules=architecture.modules)
    return build_model(base, lora, seed=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", EXACT)
def test_every_exact_architecture_passes(kind, dtype):
    model = model_of(EXACT[kind], dtype).train()
    forwards = {n: m.__dict__.get("forward") for n, m in model.named_modules()}
    check_against_own_forward(model, random_triplets(3, seed=1), CPU)
    assert model.training
    assert {n: m.__dict__.get("forward") for n, m in model.named_modules()} == forwards
    assert model.peft_model.get_base_model().config._attn_implementation == attention.ATTENTION


def without(**changes):
    def of(module, query, options, of=attention.attention_of):
        return replace(of(module, query, options), **changes)

    return of


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("mistral", {"window": 6}), ("gemma2", {"cap": None}), ("gpt_oss", {"sinks": None}),
     ("granite", {"scale": 1.0})],
)  # fmt: skip
def test_attention_without_an_option_is_refused(kind, changes, monkeypatch):
    monkeypatch.setattr(attention, "attention_of", without(**changes))
    with pytest.raises(ModelError, match=r"-\d.* by prefix trees and -\d.* own forward"):
        check_against_own_forward(model_of(EXACT[kind]), random_triplets(6, seed=1), CPU)


def test_a_layer_that_computes_something_else_is_refused(monkeypatch):
    monkeypatch.setattr(frozen_layers, "swiglu", lambda gate, up: torch.tanh(gate) * up)
    model = model_of(replace(EXACT["llama"], modules=["q_proj"]))
    with pytest.raises(ModelError, match="pooled hidden states are"):
        check_against_own_forward(model, random_triplets(3, seed=1), CPU)


def test_logits_of_another_scale_are_refused(monkeypatch):
    plain = CausalModel.logits
    monkeypatch.setattr(CausalModel, "logits", lambda self, hidden: 1.2 * plain(self, hidden))
    with pytest.raises(ModelError, match="another model than the one that is served"):
        check_against_own_forward(model_of(EXACT["cohere"]), random_triplets(3, seed=1), CPU)


def test_a_run_asks_first(tmp_path, monkeypatch):
    plain = CausalModel.logits
    monkeypatch.setattr(CausalModel, "logits", lambda self, hidden: plain(self, hidden) ** 3)
    data = write_tiny_data(tmp_path / "data", {"train": 8, "validation": 4})
    config = tiny_config(write_tiny_model(tmp_path / "model"), data, tmp_path / "run")
    with pytest.raises(ModelError, match="another model than the one that is served"):
        train(config, LocalContext(tmp_path / "run", CPU))
