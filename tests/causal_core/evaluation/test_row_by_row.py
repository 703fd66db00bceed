"""The comparison row by row: McNemar's exact test on rows that both models answered."""

from __future__ import annotations

import pytest

from causal_core.evaluation.row_by_row import (
    RowByRow,
    compare_attacks,
    compare_sets,
    mcnemar_exact,
)
from causal_core.evaluation.statistics import Estimate
from tests.causal_core.evaluation.test_rows import row


@pytest.mark.parametrize(
    ("one", "other", "p"), [(0, 0, 1.0), (5, 5, 1.0), (10, 0, 2 / 1024), (1, 9, 22 / 1024)]
)
def test_known_values(one, other, p):
    assert mcnemar_exact(one, other) == pytest.approx(p)
    assert mcnemar_exact(other, one) == pytest.approx(p)


def rows(*succeeded):
    return [row("a", "w" if s else "a", s) for s in succeeded]


def test_the_control_is_the_reference_and_rows_without_a_witness_are_left_out():
    found = compare_sets(
        {
            "base": {"seen": rows(True, True, True, True)},
            "control": {"seen": rows(True, True, None, False)},
            "trained": {"seen": rows(False, True, True, False)},
        }
    )
    assert found["seen"]["reference"] == "control"
    assert (found["seen"]["only_reference"], found["seen"]["only_trained"]) == (1, 0)
    sentence = RowByRow(**found["seen"]).sentence()
    assert "against the control alone: 1, against the trained model alone: 0" in sentence


@pytest.mark.parametrize(
    ("one", "other", "outcome"),
    [(10, 0, "lower"), (0, 10, "higher"), (3, 2, "not distinguishable")],
)
def test_pairs_decide_where_intervals_overlap(one, other, outcome):
    own, control = Estimate(0.11, 0.06, 0.20, 72), Estimate(0.25, 0.16, 0.36, 72)
    rows = RowByRow("control", one, other, mcnemar_exact(one, other))
    assert compare_attacks(own, control, rows) == outcome
    assert compare_attacks(own, control, None) == "not distinguishable"


def test_an_evaluation_without_pairs_says_nothing():
    assert compare_sets({"base": {"seen": rows(True)}}) == {}
    assert compare_sets({"trained": {"seen": rows(True)}}) == {}
    no_witness = {"base": {"seen": rows(None)}, "trained": {"seen": rows(None)}}
    assert compare_sets(no_witness) == {}
