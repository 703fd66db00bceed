"""Invariant I10: neither loss weights nor collapse choose the best checkpoint."""

from __future__ import annotations

import pytest

from causal_core.config import CheckpointSection
from causal_core.run.selection import Best

UPLIFT = CheckpointSection(metric="uplift")


def play(config, *records):
    best = Best()
    chosen = [
        best.update(step, {"uplift": u, "benign_nll": n, "causal_stability": s}, config)
        for step, (u, n, s) in enumerate(records, start=1)
    ]
    return best, chosen


def test_the_lowest_uplift_wins_among_those_that_still_answer():
    best, chosen = play(UPLIFT, (5.0, 1.0, 0), (3.0, 1.01, 0), (0.1, 4.0, 0), (2.0, 1.0, 0))
    assert chosen == [True, True, False, True] and best.step == 4


def test_a_model_that_forgot_its_task_loses_its_place_to_a_better_one():
    best, chosen = play(UPLIFT, (0.0, 4.0, 0), (5.0, 1.0, 0))
    assert chosen == [True, True] and best.step == 2


def test_collapse_cannot_win():
    """All vectors equal give stability 1; the default does not look at it."""
    best, _ = play(UPLIFT, (4.0, 1.0, 0.5), (6.0, 1.0, 1.0))
    assert best.step == 1
    by_stability, _ = play(CheckpointSection(metric="causal_stability"), (4.0, 1, 0.5), (6, 1, 1.0))
    assert by_stability.step == 2  # on request only


def test_near_a_perfect_answer_uplift_still_selects():
    best, _ = play(UPLIFT, (6.0, 0.0100, 0), (1.0, 0.0103, 0))
    assert best.step == 2


def test_a_value_that_is_not_finite_never_becomes_the_best():
    best, chosen = play(UPLIFT, (float("nan"), 1.0, 0), (5.0, 1.0, 0))
    assert chosen == [False, True] and best.step == 2


def test_below_zero_is_no_better_than_zero():
    best, chosen = play(UPLIFT, (0.0, 1.0, 0), (-8.0, 1.0, 0))
    assert chosen == [True, False] and best.step == 1
    best, chosen = play(UPLIFT, (1.0, 1.0, 0), (-8.0, 1.0, 0))
    assert chosen == [True, True] and best.value == 0.0


@pytest.mark.parametrize("patience", [1, 2])
def test_patience_counts_checkpoints_without_a_better_one(patience):
    config = CheckpointSection(metric="uplift", patience=patience, min_improvement=0.5)
    best = Best()
    for step, uplift in enumerate([5.0, 4.8, 4.6], start=1):
        best.update(step, {"uplift": uplift, "benign_nll": 1.0}, config)
        assert best.exhausted(config) == (step - 1 >= patience)


def test_of_two_that_break_as_often_the_one_that_answers_better_is_best():
    config, best = CheckpointSection(), Best()
    found = []
    for step, (success, nll) in enumerate([(0.1, 1.0), (0.1, 0.99), (0.1, 0.995), (0.2, 0.98)], 1):
        metrics = {"attack_success": success, "benign_nll": nll}
        found.append(best.update(step, metrics, config))
    assert found == [True, True, False, False]


def test_the_state_survives_a_checkpoint():
    best, _ = play(UPLIFT, (5.0, 1.0, 0), (6.0, 0.9, 0))
    assert Best.from_dict(best.to_dict()) == best
