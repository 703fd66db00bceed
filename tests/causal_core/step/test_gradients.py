"""What is to be trained gets a gradient, or the run says so after its first backward.

1. A fresh adapter passes: A behind a B of zeros is no fault. So do runs without a term on
   representations, whose head rests.
2. A tensor that nothing reaches is named before anything moves.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from causal_core.config import LoraSection, LossSection, TrainSection
from causal_core.engines.plain import PlainEngine
from causal_core.errors import ModelError
from causal_core.loss.objective import Denominators
from causal_core.model.causal_model import build_model
from causal_core.step.train_step import TrainStep
from tests.tiny import random_triplets, tiny_base

CPU = torch.device("cpu")


def first_step(model, loss=None):
    settings = TrainSection(micro_batch_tokens=500)
    step = TrainStep(PlainEngine(model, settings, CPU), loss or LossSection(), settings, CPU)
    triplets = random_triplets(4, seed=1)
    return step.run(triplets, Denominators.of(triplets), 1e-3, triplets[0])


def fresh():
    return build_model(tiny_base(), LoraSection(rank=2, dropout=0.0), seed=0)


@pytest.mark.parametrize("preset", ["default", "contrastive", "task_only"])
def test_a_fresh_adapter_passes(preset):
    assert first_step(fresh(), LossSection(preset=preset)).applied


def test_a_tensor_that_nothing_reaches_is_named():
    model = fresh()
    model.projection.spare = nn.Linear(2, 2)
    with pytest.raises(ModelError, match=r"projection\.spare\.weight is to be trained.*2 of"):
        first_step(model, LossSection(preset="contrastive"))


def test_an_adapter_that_is_left_out_of_the_forward_is_named():
    model = fresh()
    layer = model.peft_model.get_base_model().get_decoder().layers[1].mlp.up_proj
    layer.forward = layer.base_layer.forward
    before = {n: p.detach().clone() for n, p in model.trainable_parameters().items()}
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj\.lora_A"):
        first_step(model)
    for name, parameter in model.trainable_parameters().items():
        assert torch.equal(parameter, before[name])
