"""Figures as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from causal_core.config_sections import FLOAT32
from causal_core.evaluation.metrics import SHARE, Unit
from causal_core.evaluation.statistics import Estimate, has_interval


def interval(estimate: Estimate, unit: Unit, to: str = " to ") -> str:
    """The interval as text: `1.2 to 10.0 %`."""
    if not has_interval(estimate):
        return "no interval"
    return f"{unit.digits(estimate.low)}{to}{unit.text(estimate.high)}"


def counted(estimate: Estimate) -> str:
    """A proportion in words: `3 of 84 (3.6 %, 1.2 to 10.0 %)`."""
    count = estimate.value * estimate.n
    # A count is written only where the value really is one.
    if estimate.n and abs(count - round(count)) < 1e-6 * estimate.n:
        inside = f"{SHARE.text(estimate.value)}, {interval(estimate, SHARE)}"
        return f"{round(count)} of {estimate.n} ({inside})"
    return brief(estimate)


def brief(estimate: Estimate) -> str:
    """A proportion and its interval: `3.6 % (1.2 to 10.0 %)`."""
    return f"{SHARE.text(estimate.value)} ({interval(estimate, SHARE)})"


def rounding(evaluation: Mapping[str, Any]) -> tuple[str, ...]:
    """In which type the answers and scores of an evaluation were computed, where it needs words."""
    if evaluation.get("matmul", FLOAT32) == FLOAT32:
        return ()
    return (
        "Answers and scores of all models are from matrix products in bfloat16 (evaluation.matmul),"
        " not in float32: close calls may fall otherwise.",
    )


def for_model(model: str) -> str:
    """Whose figure it is, at the end of a phrase."""
    known = {"control": "without the defence (control)", "base": "for the base model"}
    return known.get(model, f"for {model}")
