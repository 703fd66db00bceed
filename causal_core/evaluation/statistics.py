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
    p = successes / n
    denominator = 1 + Z95**2 / n
    centre = (p + Z95**2 / (2 * n)) / denominator
    half = Z95 * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n * n)) / denominator
    # At 0 of n and n of n the bound is exactly 0 and 1; rounding must not push it past.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Estimate(p, low, high, n)


def mean_estimate(values: Sequence[float] | np.ndarray) -> Estimate | None:
    """Mean with a normal-approximation interval; None below two items, where there is none."""
    array = np.asarray(values, dtype=np.float64)
    if array.size < 2:
        return None
    mean = float(array.mean())
    half = Z95 * float(array.std(ddof=1)) / math.sqrt(array.size)
    return Estimate(mean, mean - half, mean + half, int(array.size))


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
