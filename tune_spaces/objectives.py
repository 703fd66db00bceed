"""What a sweep may aim at: figures that the loss weights do not enter (invariant I10).

All are measured on the validation data of a trial's best checkpoint; the test sets are never seen
by a sweep, so that they can judge its winner.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from causal_core.evaluation.metrics import METRIC, Metric, Unit
from causal_core.evaluation.statistics import has_interval, read_estimate
from causal_core.report.wording import interval

ObjectiveName = Literal[
    "attack_success",
    "uplift",
    "benign_exact",
    "attacked_exact",
    "benign_nll",
    "causal_discrimination",
    "peak_memory_bytes",
    "seconds",
]

Metrics = Mapping[str, Mapping[str, Any]]  # name -> {"value": ..., maybe "low", "high", "n"}


@dataclass(frozen=True)
class Objective:
    """A metric to make as low or as high as possible."""

    metric: Metric
    in_run: str | None  # the validation metric inside a run that goes with it; None: there is none

    @property
    def maximize(self) -> bool:
        return self.metric.better == "higher"

    def better(self, one: float, two: float) -> bool:
        """Whether `one` is strictly better than `two`."""
        return one > two if self.maximize else one < two


# A sweep's own: what a trial costs.
_COSTS = (
    Metric(
        "peak_memory_bytes", "Peak memory, measured", "Of the first worker.", "lower",
        Unit("GiB", 2, 2.0**-30, "GiB"),
    ),
    Metric(
        "seconds", "Seconds of training", "Of the optimizer steps.", "lower",
        Unit("s", 0, symbol="s"),
    ),
)  # fmt: skip
_IN_RUN: dict[ObjectiveName, str] = {
    "attack_success": "uplift",
    "uplift": "uplift",
    "benign_exact": "benign_nll",
    "attacked_exact": "uplift",
    "benign_nll": "benign_nll",
    "causal_discrimination": "causal_discrimination",
}
OBJECTIVES: dict[str, Objective] = {
    **{name: Objective(METRIC[name], in_run) for name, in_run in _IN_RUN.items()},
    **{metric.key: Objective(metric, None) for metric in _COSTS},
}


def value_of(metrics: Metrics, name: str) -> float | None:
    """A measured figure; None where it was not measured or is not finite."""
    found = metrics.get(name)
    value = None if found is None else found.get("value")
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def values_of(metrics: Metrics, names: Sequence[str]) -> list[float] | None:
    """All the objectives of a trial, or None where one of them is missing."""
    values = [value_of(metrics, name) for name in names]
    return None if any(v is None for v in values) else [v for v in values if v is not None]


def dominates(one: Sequence[float], two: Sequence[float], names: Sequence[str]) -> bool:
    """Whether `one` is at least as good in all objectives and better in one (Pareto)."""
    better = [OBJECTIVES[n].better(a, b) for n, a, b in zip(names, one, two, strict=True)]
    worse = [OBJECTIVES[n].better(b, a) for n, a, b in zip(names, one, two, strict=True)]
    return any(better) and not any(worse)


def pareto_front(points: Mapping[int, Sequence[float]], names: Sequence[str]) -> list[int]:
    """Keys of the points that no other one dominates, best in the first objective first."""
    front = [
        key
        for key, values in points.items()
        if not any(dominates(other, values, names) for other in points.values())
    ]
    signs = [-1.0 if OBJECTIVES[name].maximize else 1.0 for name in names]
    return sorted(front, key=lambda k: ([s * v for s, v in zip(signs, points[k], strict=True)], k))


def shown(name: str, value: float | None) -> str:
    """A figure as people read it."""
    return "—" if value is None else OBJECTIVES[name].metric.unit.text(value)


def shown_interval(metrics: Metrics, name: str, to: str = " to ") -> str:
    """The 95 % interval of a measured figure as people read it; empty where there is none."""
    estimate = read_estimate(metrics.get(name))
    if estimate is None or not has_interval(estimate):
        return ""
    return interval(estimate, OBJECTIVES[name].metric.unit, to)
