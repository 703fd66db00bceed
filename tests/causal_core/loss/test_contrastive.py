"""The loss terms on cases whose value is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from causal_core.config import LossSection
from causal_core.loss.contrastive import causal_metrics, causal_sum, cosines, spurious_sum
from causal_core.trees.needs import BRANCHES


def of(benign, counterfactual, *injections):
    """The cosines of one triplet."""
    z = torch.tensor([benign, counterfactual, *injections], dtype=torch.float64)
    numbers = torch.arange(len(z))
    index = dict(zip(BRANCHES, (numbers[:1], numbers[1:2], numbers[2:]), strict=True))
    return cosines(z, index, torch.zeros(len(injections), dtype=torch.long))


def loss_of(**fields) -> LossSection:
    return LossSection(lambda_causal=1.0, **fields)


def test_pull_and_push_have_the_signs_of_the_reports():
    both, loss = of([1.0, 0.0], [1.0, 0.0], [0.0, 1.0]), loss_of(temperature=0.5)
    # U and U' aligned: as low as it gets.
    assert float(causal_sum(both, loss)) == pytest.approx(-2.0)
    assert float(spurious_sum(both, loss)) == pytest.approx(0.0)
    opposed = of([1.0, 0.0], [1.0, 0.0], [-1.0, 0.0])
    assert float(spurious_sum(opposed, loss)) == pytest.approx(-2.0)


def test_info_nce_and_triplet_margin_by_hand():
    both = of([1.0, 0.0], [1.0, 0.0], [0.0, 1.0])
    nce = causal_sum(both, loss_of(contrastive="info_nce", temperature=1.0))
    assert float(nce) == pytest.approx(math.log(1 + math.exp(-1.0)))
    for margin, expected in ((1.5, 0.5), (0.5, 0.0)):
        found = causal_sum(both, loss_of(contrastive="triplet", margin=margin))
        assert float(found) == pytest.approx(expected)


def test_the_causal_metrics_are_the_cosines_as_the_reports_name_them():
    assert causal_metrics(0.75, 0.25) == {
        "causal_stability": 0.75, "spurious_separation": 0.75, "causal_discrimination": 0.5
    }  # fmt: skip


def test_cosines_ignore_length():
    found = of([2.0, 0.0], [5.0, 5.0], [-3.0, 0.0])
    assert float(found.counterfactual_T) == pytest.approx(math.sqrt(0.5))
    assert float(found.injection_J) == pytest.approx(-1.0)


def test_a_triplet_with_several_injections_counts_once_in_a_joint_form():
    once = of([1.0, 0.0], [1.0, 0.0], [0.0, 1.0])
    twice = of([1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0])
    for kind in ("info_nce", "triplet"):
        loss = loss_of(contrastive=kind, margin=1.5)
        assert float(causal_sum(twice, loss)) == pytest.approx(float(causal_sum(once, loss)))
    assert float(spurious_sum(of([1.0, 0.0], [1.0, 0.0]), loss_of())) == 0.0
