"""The measured layout cost: a power of two, with a default where nothing can be timed."""

from __future__ import annotations

import torch

from causal_core.model.device_costs import measured_call_cost, measured_score_cost
from causal_core.trees.packing import RowCost
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
