"""The measures that other tests trust can fail."""

from __future__ import annotations

import math

import pytest
import torch

from tests.tiny import relative_error


@pytest.mark.parametrize("size", [0.0, 1.0])
@pytest.mark.parametrize("side", ["found", "expected", "both"])
def test_a_number_that_is_none_is_an_error(side, size):
    """Also before or after tensors without one, and in a gradient that should be zero."""
    right = {name: torch.full((3,), size) for name in "abc"}
    wrong = {**right, "b": torch.tensor([size, math.nan, size])}
    found = wrong if side in ("found", "both") else right
    expected = wrong if side in ("expected", "both") else right
    assert math.isnan(relative_error(found, expected))


def test_the_worst_tensor_counts():
    expected = {"a": torch.ones(4), "b": torch.full((4,), 2.0), "zero": torch.zeros(4)}
    found = {"a": torch.ones(4), "b": torch.full((4,), 3.0), "zero": torch.zeros(4)}
    assert relative_error(found, expected) == 0.5
    assert relative_error({**found, "zero": torch.full((4,), 0.5)}, expected) == 1.0
