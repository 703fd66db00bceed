"""Step counting, data order and shares: one place, pure functions (invariants I2 and I3)."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from causal_core.config import TrainSection
from causal_core.run.schedule import learning_rate, warmup_steps
from causal_core.tokens.batches import StepPlan, share

plans = st.builds(
    StepPlan,
    rows=st.integers(1, 60),
    global_batch=st.integers(1, 20),
    epochs=st.integers(1, 4),
    max_steps=st.none() | st.integers(1, 100),
)


@given(plan=plans, seed=st.integers(0, 5))
def test_every_epoch_sees_every_row_once_and_the_counts_agree(plan, seed):
    consumed = 0
    seen: dict[int, list[int]] = {}
    for step in range(plan.total_steps):
        assert plan.samples_after(step) == consumed
        batch = plan.batch(step, seed)
        seen.setdefault(plan.epoch_of(step), []).extend(batch.tolist())
        consumed += len(batch)
    assert plan.samples_after(plan.total_steps) == consumed
    whole = plan.epochs if plan.max_steps is None else plan.total_steps // plan.steps_per_epoch
    for epoch in range(min(whole, plan.epochs)):
        assert sorted(seen[epoch]) == list(range(plan.rows))
    assert plan.steps_per_epoch == math.ceil(plan.rows / plan.global_batch)


def test_a_limit_of_steps_ends_a_run_early_and_never_prolongs_it():
    for limit, steps in ((None, 6), (4, 4), (100, 6)):
        assert StepPlan(rows=10, global_batch=4, epochs=2, max_steps=limit).total_steps == steps


def test_epochs_differ_and_seeds_differ():
    plan = StepPlan(rows=50, global_batch=50, epochs=2)
    assert not np.array_equal(plan.batch(0, 0), plan.batch(1, 0))
    assert not np.array_equal(plan.batch(0, 0), plan.batch(0, 1))


@given(costs=st.lists(st.integers(1, 100), max_size=40), workers=st.integers(1, 6))
def test_shares_partition_the_batch_and_are_balanced(costs, workers):
    shares = share(costs, workers)
    assert sorted(i for s in shares for i in s) == list(range(len(costs)))
    loads = [sum(costs[i] for i in s) for s in shares]
    assert max(loads) - min(loads) <= max(costs, default=0)


def test_shares_are_balanced_by_cost_not_by_count():
    assert share([10, *[1] * 10], 2) == [[0], list(range(1, 11))]


@given(total=st.integers(1, 300), ratio=st.floats(0, 0.9))
def test_the_schedule_warms_up_to_the_peak_and_never_passes_it(total, ratio):
    for kind in ("cosine", "linear", "constant"):
        train = TrainSection(learning_rate=1.0, warmup_ratio=ratio, schedule=kind)
        rates = [learning_rate(s, total, train) for s in range(total)]
        warmup = warmup_steps(total, ratio)
        assert all(0 < r <= 1.0 for r in rates)
        assert rates[: warmup + 1] == sorted(rates[: warmup + 1])
        assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
        assert max(rates) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("kind", "rates"),
    [
        # 9 steps, a quarter of them rounded up to 3 of warm-up, then 6 of decay towards 0.
        ("linear", [1 / 3, 2 / 3, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ("constant", [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1, 1]),
        ("cosine", [1 / 3, 2 / 3, 1, *(0.5 + 0.5 * math.cos(math.pi * k / 6) for k in range(6))]),
    ],
)
def test_the_schedule_is_what_its_name_says(kind, rates):
    train = TrainSection(learning_rate=1.0, warmup_ratio=0.25, schedule=kind)
    assert warmup_steps(9, 0.25) == 3
    assert [learning_rate(step, 9, train) for step in range(9)] == pytest.approx(rates)
