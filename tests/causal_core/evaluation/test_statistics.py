"""Intervals and ranks against values that are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from causal_core.evaluation.statistics import (
    Estimate,
    _wilson,
    clustered,
    compare,
    effective_rank,
    mean_estimate,
    wilson,
)


@pytest.mark.parametrize(("k", "n"), [(0, 73), (2, 142), (5, 230)])
def test_the_sample_sizes_that_show_less_than_five_percent(k, n):
    assert wilson(k, n).high < 0.0501
    assert wilson(k + 1, n).high > 0.05


@given(n=st.integers(1, 500), data=st.data())
def test_wilson_contains_the_value_and_mirrors(n, data):
    k = data.draw(st.integers(0, n))
    estimate, mirrored = wilson(k, n), wilson(n - k, n)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    assert estimate.low == pytest.approx(1 - mirrored.high)


@pytest.mark.parametrize(
    ("k", "n", "low", "high"), [(5, 10, 0.236593, 0.763407), (1, 10, 0.017876, 0.404150)]
)
def test_wilson_gives_the_published_interval(k, n, low, high):
    """From the definition: the p0 with |p - p0| = z sqrt(p0 (1 - p0) / n)."""
    found = wilson(k, n)
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-6), pytest.approx(high, abs=1e-6))
    for bound in (found.low, found.high):
        z = abs(k / n - bound) / (bound * (1 - bound) / n) ** 0.5
        assert z == pytest.approx(1.959964, rel=1e-6)


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_clusters_of_one_are_independent_items(flags):
    found, plain = clustered(flags, range(len(flags))), wilson(sum(flags), len(flags))
    assert found.value == plain.value
    # The variance is estimated from the items themselves: as if there were one fewer.
    fewer = _wilson(plain.value, max(1, len(flags) - 1), len(flags))
    assert plain.high <= found.high <= max(plain.high, fewer.high) + 1e-12
    assert clustered(flags, [0] * len(flags)) == wilson(sum(flags), len(flags))  # nothing to see


def test_clusters_that_agree_count_as_one_item_each():
    """40 items in 8 clusters of equal items: a design effect of about the size of a cluster."""
    flags = [n // 5 in (0, 1) for n in range(40)]
    found, plain = clustered(flags, [n // 5 for n in range(40)]), wilson(10, 40)
    assert found.value == plain.value == 0.25 and found.n == 40
    eight = wilson(2, 8)
    assert plain.high < found.high < eight.high + 0.05
    assert found.high == pytest.approx(eight.high, abs=0.03)
    assert clustered([False] * 40, [n // 5 for n in range(40)]) == wilson(0, 40)


def test_the_interval_of_a_mean_is_that_of_its_standard_error():
    found = mean_estimate([1.0, 2.0, 3.0, 4.0])  # variance 5/3 with n - 1, standard error 0.6455
    half = 1.959964 * (5 / 3 / 4) ** 0.5
    assert (found.low, found.high) == (pytest.approx(2.5 - half), pytest.approx(2.5 + half))


def test_a_direction_needs_intervals_apart():
    low, overlapping = Estimate(0.1, 0.0, 0.3, 9), Estimate(0.5, 0.2, 0.8, 9)
    assert compare(low, overlapping) == compare(overlapping, low) == "not distinguishable"
    high = Estimate(0.6, 0.4, 0.8, 9)
    assert compare(low, high) == "lower" and compare(high, low) == "higher"


def test_nothing_to_estimate_is_none():
    assert wilson(0, 0) is None and mean_estimate([]) is None


def test_a_mean_of_shares_has_an_interval_of_shares():
    few = mean_estimate([0.0, 0.0, 1.0], (0.0, 1.0))
    plain = mean_estimate([0.0, 0.0, 1.0])
    assert plain.low < 0 == few.low and few.high == min(1.0, plain.high)


def test_the_mean_interval_shrinks_with_n():
    few, many = mean_estimate([0.0, 1.0] * 5), mean_estimate([0.0, 1.0] * 500)
    assert few.value == many.value == 0.5
    assert many.high - many.low < few.high - few.low


def test_effective_rank_tells_collapse_from_spread():
    one_way = np.ones((20, 8)) * np.arange(1, 21)[:, None]
    assert effective_rank(one_way) == pytest.approx(1.0)
    assert effective_rank(np.eye(8)) == pytest.approx(8.0)
    assert effective_rank(np.zeros((3, 4))) == 0.0
