"""The measured layout cost: a power of two, with a default where nothing can be timed."""

from __future__ import annotations

import pytest
import torch

import causal_core.model.device_costs as costs_module
from causal_core.config import LoraSection, ModelSection
from causal_core.model.causal_model import build_model
from causal_core.model.device_costs import (
    Measurements,
    measured_call_cost,
    measured_score_cost,
    measurements_of,
)
from causal_core.pretrained.loading import load_base
from causal_core.run.exercise import write_base
from causal_core.trees.packing import RowCost
from tests.tiny import tiny_model

CPU = torch.device("cpu")


def test_costs_are_powers_of_two_within_their_range():
    call = measured_call_cost(heads=4, grouped=2, width=8, dtype=torch.float32)
    assert 2**10 <= call <= 2**18 and call.as_integer_ratio()[0].bit_count() == 1
    score = measured_score_cost(tiny_model(), CPU)
    assert 2**-20 <= score <= 1 and score.as_integer_ratio()[0] == 1


def test_what_cannot_be_timed_on_the_device_has_the_default():
    elsewhere = measured_score_cost(tiny_model(), torch.device("meta"))
    other = tiny_model()
    for layer in other.peft_model.get_base_model().get_decoder().layers:
        del layer.mlp
    assert elsewhere == measured_score_cost(other, CPU) == RowCost().quadratic


RUNS = {
    "float32": ({}, torch.float32),
    "bfloat16": ({"dtype": "bfloat16"}, torch.bfloat16),
    "nf4": ({"quantization": "nf4", "dtype": "bfloat16"}, torch.bfloat16),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The same model as a run of each type loads it; the adapter is in float32 in all of them."""
    base = str(write_base(tmp_path_factory.mktemp("base")))
    loaded = {
        name: load_base(ModelSection(name_or_path=base, **options), CPU)
        for name, (options, _) in RUNS.items()
    }
    return {name: build_model(each, LoraSection(rank=2), seed=0) for name, each in loaded.items()}


def types_seen(monkeypatch, module, name):
    """The types of the first tensor that a function is given from now on."""
    seen, plain = set(), getattr(module, name)

    def watched(*arguments, **options):
        seen.add(next(a for a in arguments if isinstance(a, torch.Tensor)).dtype)
        return plain(*arguments, **options)

    monkeypatch.setattr(module, name, watched)
    return seen


@pytest.mark.parametrize("name", RUNS)
def test_what_is_timed_is_computed_in_the_type_of_the_run(models, name, monkeypatch):
    model, wanted = models[name], RUNS[name][1]
    monkeypatch.setattr(costs_module, "_REPEATS", 1)
    blocks = types_seen(monkeypatch, costs_module, "tree_attention_forward")
    rows = types_seen(monkeypatch, torch.nn.functional, "scaled_dot_product_attention")
    mlp = model.peft_model.get_base_model().get_decoder().layers[0].mlp
    linear = types_seen(monkeypatch, mlp, "forward")
    costs_module.measure(model, CPU)
    assert blocks == {wanted}
    measured_score_cost(model, CPU)
    assert (rows, linear) == ({wanted}, {wanted})


def test_runs_of_other_types_are_measured_apart(models, tmp_path, monkeypatch):
    entries = iter(Measurements(float(2**n), "torch") for n in range(10, 20))
    monkeypatch.setattr(costs_module, "measure", lambda *_: next(entries))
    found = [measurements_of(model, CPU, tmp_path) for model in models.values()]
    assert len(set(found)) == len(RUNS)
    assert [measurements_of(model, CPU, tmp_path) for model in models.values()] == found
