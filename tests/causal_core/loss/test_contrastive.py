"""The loss terms on cases whose value is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from causal_core.loss.contrastive import contrastive_sums, cosines


def z_of(*rows):
    return torch.tensor([rows], dtype=torch.float64)


def test_pull_and_push_have_the_signs_of_the_reports():
    z = z_of([1.0, 0.0], [1.0, 0.0], [0.0, 1.0])
    sums = contrastive_sums("causal_contrastive", z, temperature=0.5, margin=0.0)
    assert float(sums["causal"]) == pytest.approx(-2.0)  # U and U' aligned: as low as it gets
    assert float(sums["spurious"]) == pytest.approx(0.0)
    opposed = contrastive_sums("causal_contrastive", z_of([1, 0.0], [1, 0.0], [-1, 0.0]), 0.5, 0)
    assert float(opposed["spurious"]) == pytest.approx(-2.0)


def test_info_nce_and_triplet_margin_by_hand():
    z = z_of([1.0, 0.0], [1.0, 0.0], [0.0, 1.0])
    nce = contrastive_sums("info_nce", z, temperature=1.0, margin=0.0)
    assert float(nce["causal"]) == pytest.approx(math.log(1 + math.exp(-1.0)))
    assert float(nce["spurious"]) == 0.0
    assert float(contrastive_sums("triplet", z, 1.0, margin=1.5)["causal"]) == pytest.approx(0.5)
    assert float(contrastive_sums("triplet", z, 1.0, margin=0.5)["causal"]) == 0.0


def test_cosines_ignore_length():
    cf, inj = cosines(z_of([2.0, 0.0], [5.0, 5.0], [-3.0, 0.0]))
    assert float(cf) == pytest.approx(math.sqrt(0.5))
    assert float(inj) == pytest.approx(-1.0)
