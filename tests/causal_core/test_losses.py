"""The loss terms on cases whose value is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from causal_core.losses import contrastive_sums, cosines, cross_entropy_sum, kl_sum


def z_of(*rows):
    return torch.tensor([rows], dtype=torch.float64)


def test_cross_entropy_of_a_uniform_distribution_is_log_v_per_token():
    value = cross_entropy_sum(torch.zeros(3, 8), torch.tensor([0, 3, 7]))
    assert float(value) == pytest.approx(3 * math.log(8))


def test_kl_is_zero_for_equal_distributions_and_positive_otherwise():
    logits = torch.randn(4, 9)
    assert float(kl_sum(logits, logits + 5.0)) == pytest.approx(0.0, abs=1e-5)
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1])
    expected = float((p * (p / q).log()).sum())
    assert float(kl_sum(p.log()[None], q.log()[None])) == pytest.approx(expected)


def test_no_gradient_reaches_the_teacher():
    teacher = torch.randn(2, 5, requires_grad=True)
    student = torch.randn(2, 5, requires_grad=True)
    kl_sum(teacher, student).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0


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
