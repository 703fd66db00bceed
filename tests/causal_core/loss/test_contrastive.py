"""The loss terms on cases whose value is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from causal_core.config import LossSection
from causal_core.loss.contrastive import causal_metrics, causal_sum, cosines, spurious_sum


def z_of(*rows):
    return torch.tensor([rows], dtype=torch.float64)


def loss_of(**fields) -> LossSection:
    return LossSection(lambda_causal=1.0, **fields)


def test_pull_and_push_have_the_signs_of_the_reports():
    both, loss = cosines(z_of([1.0, 0.0], [1.0, 0.0], [0.0, 1.0])), loss_of(temperature=0.5)
    # U and U' aligned: as low as it gets.
    assert float(causal_sum(*both, loss)) == pytest.approx(-2.0)
    assert float(spurious_sum(*both, loss)) == pytest.approx(0.0)
    opposed = cosines(z_of([1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]))
    assert float(spurious_sum(*opposed, loss)) == pytest.approx(-2.0)


def test_info_nce_and_triplet_margin_by_hand():
    both = cosines(z_of([1.0, 0.0], [1.0, 0.0], [0.0, 1.0]))
    nce = causal_sum(*both, loss_of(contrastive="info_nce", temperature=1.0))
    assert float(nce) == pytest.approx(math.log(1 + math.exp(-1.0)))
    for margin, expected in ((1.5, 0.5), (0.5, 0.0)):
        found = causal_sum(*both, loss_of(contrastive="triplet", margin=margin))
        assert float(found) == pytest.approx(expected)


def test_the_causal_metrics_are_the_cosines_as_the_reports_name_them():
    assert causal_metrics(0.75, 0.25) == {
        "causal_stability": 0.75, "spurious_separation": 0.75, "causal_discrimination": 0.5
    }  # fmt: skip


def test_cosines_ignore_length():
    cf, inj = cosines(z_of([2.0, 0.0], [5.0, 5.0], [-3.0, 0.0]))
    assert float(cf) == pytest.approx(math.sqrt(0.5))
    assert float(inj) == pytest.approx(-1.0)
