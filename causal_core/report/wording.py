"""Figures as text."""

from __future__ import annotations

from causal_core.evaluation.statistics import Estimate, has_interval

_NBSP = "\N{NO-BREAK SPACE}"


def number(value: float, proportion: bool, unit: bool = True) -> str:
    """A value as text: `3.6 %` for proportions, three decimals otherwise."""
    if not proportion:
        return f"{value:.3f}"
    digits = f"{100 * value:.1f}"
    return f"{digits}{_NBSP}%" if unit else digits


def interval(estimate: Estimate, proportion: bool) -> str:
    """The interval as text: `1.2 to 10.0 %`."""
    if not has_interval(estimate):
        return "no interval"
    low = number(estimate.low, proportion, unit=False)
    return f"{low} to {number(estimate.high, proportion)}"


def counted(estimate: Estimate) -> str:
    """A proportion in words: `3 of 84 (3.6 %, 1.2 to 10.0 %)`."""
    count = estimate.value * estimate.n
    # A count is written only where the value really is one.
    if estimate.n and abs(count - round(count)) < 1e-6 * estimate.n:
        inside = f"{number(estimate.value, True)}, {interval(estimate, True)}"
        return f"{round(count)} of {estimate.n} ({inside})"
    return _brief(estimate)


def _brief(estimate: Estimate) -> str:
    """A proportion and its interval: `3.6 % (1.2 to 10.0 %)`."""
    return f"{number(estimate.value, True)} ({interval(estimate, True)})"


def _without(model: str) -> str:
    known = {"control": "without the defence (control)", "base": "for the base model"}
    return known.get(model, f"for {model}")
