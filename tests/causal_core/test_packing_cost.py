"""The measured layout cost: a power of two, remembered per device, and kept by a run."""

from __future__ import annotations

import json

import pytest
import torch

import causal_core.packing_cost as packing_cost
from causal_core.packing_cost import cost_of, measured_call_cost, measured_score_cost, packing_of
from causal_core.triplet_trees import RowCost
from tests.tiny import tiny_model

CPU = torch.device("cpu")


def test_costs_are_powers_of_two_within_their_range():
    call = measured_call_cost(heads=4, grouped=2, width=8)
    assert 2**10 <= call <= 2**18 and call.as_integer_ratio()[0].bit_count() == 1
    score = measured_score_cost(tiny_model(), CPU)
    assert 2**-20 <= score <= 1 and score.as_integer_ratio()[0] == 1


def test_what_cannot_be_timed_on_the_device_has_the_default():
    elsewhere = measured_score_cost(tiny_model(), torch.device("meta"))
    other = tiny_model()
    for layer in other.peft_model.get_base_model().get_decoder().layers:
        del layer.mlp
    assert elsewhere == measured_score_cost(other, CPU) == RowCost().quadratic


def test_a_cost_is_measured_once_per_device(tmp_path, monkeypatch):
    model = tiny_model()
    first = packing_of(model, CPU, tmp_path)
    assert first.flat
    (entry,) = (tmp_path / "packing").iterdir()
    monkeypatch.setattr(packing_cost, "measured_call_cost", pytest.fail)
    assert packing_of(model, CPU, tmp_path) == first
    entry.write_text(json.dumps({"cost": 2048.0}))
    assert cost_of(packing_of(model, CPU, tmp_path)) == 2048.0
    entry.write_text("damaged")
    monkeypatch.setattr(packing_cost, "measured_call_cost", lambda *_: 4096.0)
    assert cost_of(packing_of(model, CPU, tmp_path)) == 4096.0
