"""Intervals for the numbers people compare."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Z95 = 1.959963984540054  # standard normal quantile of a two-sided 95 % interval


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval and the number of items behind it."""

    value: float
    low: float
    high: float
    n: int

    def to_dict(self) -> dict[str, float | int]:
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}


def wilson(successes: int, n: int) -> Estimate | None:
    """Proportion with the Wilson score interval (Wilson, 1927); None without items."""
    if n == 0:
        return None
    return _wilson(successes / n, n, n)


def _wilson(p: float, size: float, n: int) -> Estimate:
    """The interval of a proportion of `size` independent items; `n` is what is said to be n."""
    denominator = 1 + Z95**2 / size
    centre = (p + Z95**2 / (2 * size)) / denominator
    half = Z95 * math.sqrt(p * (1 - p) / size + Z95**2 / (4 * size * size)) / denominator
    # At 0 of n and n of n the bound is exactly 0 and 1; rounding must not push it past.
    low = 0.0 if p == 0 else max(0.0, centre - half)
    high = 1.0 if p == 1 else min(1.0, centre + half)
    return Estimate(p, low, high, n)


def clustered(flags: Sequence[bool], clusters: Sequence[object]) -> Estimate | None:
    """Proportion with an interval for items that come in clusters; None without items.

    Items of a cluster are alike (attacks of one wording succeed together), so n of them say less
    than n independent ones: n by the design effect, the variance of the proportion over clusters
    by that of independent items (Kish, 1965), is put into the Wilson interval (Korn and Graubard,
    1998). A design effect below 1 counts as 1, and so does that of no or only successes, where
    there is no variance to see.
    """
    n, successes = len(flags), sum(flags)
    plain = wilson(successes, n)
    if plain is None or successes in (0, n):
        return plain
    sums: dict[object, list[float]] = {}
    for flag, cluster in zip(flags, clusters, strict=True):
        of = sums.setdefault(cluster, [0.0, 0.0])
        of[0] += flag
        of[1] += 1
    count = len(sums)
    if count < 2:
        return plain
    p = successes / n
    variance = count / (count - 1) * sum((s - p * m) ** 2 for s, m in sums.values()) / n**2
    effect = max(1.0, variance / (p * (1 - p) / n))
    return _wilson(p, n / effect, n)


def mean_estimate(
    values: Sequence[float] | np.ndarray, within: tuple[float, float] = (-math.inf, math.inf)
) -> Estimate | None:
    """Mean with a normal-approximation interval; None below two items, where there is none.

    Args:
        within: What values can be at all, and so what their mean can be.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size < 2:
        return None
    mean = float(array.mean())
    half = Z95 * float(array.std(ddof=1)) / math.sqrt(array.size)
    low, high = max(within[0], mean - half), min(within[1], mean + half)
    return Estimate(mean, low, high, int(array.size))


def effective_rank(vectors: np.ndarray) -> float:
    """exp of the entropy of the normalised singular values of [n, H] (Roy and Vetterli, 2007).

    Near 1 when all vectors point the same way: the collapse that rewards `causal_stability`.
    """
    singular = np.linalg.svd(vectors.astype(np.float64), compute_uv=False)
    total = singular.sum()
    if total == 0:
        return 0.0
    p = singular[singular > 0] / total
    return float(np.exp(-(p * np.log(p)).sum()))


Comparison = Literal["lower", "higher", "not distinguishable"]


def read_estimate(raw: object) -> Estimate | None:
    """An estimate as `summary.json` holds it; None where there is none or it is not a number."""
    if not isinstance(raw, Mapping) or not isinstance(raw.get("value"), int | float):
        return None
    value = float(raw["value"])
    low, high = (
        float(bound) if isinstance(bound, int | float) else math.nan
        for bound in (raw.get("low"), raw.get("high"))
    )
    return None if math.isnan(value) else Estimate(value, low, high, int(raw.get("n") or 0))


def has_interval(estimate: Estimate) -> bool:
    """Whether both bounds are finite (a mean over one item has none)."""
    return math.isfinite(estimate.low) and math.isfinite(estimate.high)


def compare(one: Estimate, other: Estimate) -> Comparison:
    """How `one` lies against `other`; a direction only where the intervals do not overlap."""
    if one.high < other.low:
        return "lower"
    if one.low > other.high:
        return "higher"
    return "not distinguishable"
