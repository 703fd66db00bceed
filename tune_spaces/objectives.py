"""What a sweep may aim at: figures that the loss weights do not enter (invariant I10).

All are measured on the validation data of a trial's best checkpoint; the test sets are never seen
by a sweep, so that they can judge its winner.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

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
    """A figure to make as low or as high as possible."""

    name: ObjectiveName
    title: str
    maximize: bool
    unit: Literal["share", "nats", "cosine", "bytes", "seconds"]
    in_run: str | None  # the validation metric inside a run that goes with it; None: there is none

    def better(self, one: float, two: float) -> bool:
        """Whether `one` is strictly better than `two`."""
        return one > two if self.maximize else one < two


OBJECTIVES: dict[str, Objective] = {
    objective.name: objective
    for objective in (
        Objective("attack_success", "attacks that succeed", False, "share", "uplift"),
        Objective("uplift", "pull towards the witness", False, "nats", "uplift"),
        Objective("benign_exact", "benign answers exactly right", True, "share", "benign_nll"),
        Objective("attacked_exact", "right answer under attack", True, "share", "uplift"),
        Objective("benign_nll", "benign negative log-likelihood", False, "nats", "benign_nll"),
        Objective(
            "causal_discrimination", "causal discrimination", True, "cosine",
            "causal_discrimination",
        ),
        Objective("peak_memory_bytes", "peak memory, measured", False, "bytes", None),
        Objective("seconds", "seconds of training", False, "seconds", None),
    )
}  # fmt: skip


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
    if value is None:
        return "—"
    unit = OBJECTIVES[name].unit
    if unit == "share":
        return f"{100 * value:.1f} %"
    if unit == "bytes":
        return f"{value / 2**30:.2f} GiB"
    if unit == "seconds":
        return f"{value:.0f} s"
    return f"{value:#.3g}"
