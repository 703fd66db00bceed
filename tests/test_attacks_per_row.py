"""The benchmark of k attacks in a row: what it compares is the same attacks, apart and together."""

from __future__ import annotations

import io
import itertools

from rich.console import Console

from benchmarks.attacks_per_row import costs, show, with_attacks
from tests.tiny import random_triplets, tiny_model


def test_k_rows_cost_what_their_attacks_cost_apart_and_one_row_shares():
    rows = random_triplets(3, 0, injections=(2, 2))
    ticks = itertools.count()
    steps = []
    found = costs(tiny_model(), rows, [1, 2], 3, 10_000, lambda: float(next(ticks)),
                  lambda: steps.append(1))  # fmt: skip
    one, two = found
    assert one.nodes == one.apart_nodes < two.nodes < two.apart_nodes
    assert one.ratios() == [1.0] * 3 and two.ratios() == [2.0] * 3  # every step takes one tick
    assert len(steps) == 3 * (2 + 2)
    out = io.StringIO()
    show(Console(file=out, width=100), found, len(rows))
    assert "2.00 (2.00 - 2.00)" in out.getvalue()


def test_the_first_attacks_of_each_row_are_kept():
    rows = random_triplets(3, 0, injections=(2, 2))
    assert with_attacks(rows, 1) == [row.attacked(0) for row in rows]
