"""The learning rate as a pure function of the optimizer step: nothing to save, nothing to drift."""

from __future__ import annotations

import math

from causal_core.config import TrainSection


def warmup_steps(total_steps: int, warmup_ratio: float) -> int:
    """Steps of linear warm-up: the ratio of all steps, rounded up."""
    return math.ceil(total_steps * warmup_ratio)


def learning_rate(step: int, total_steps: int, train: TrainSection) -> float:
    """Learning rate of optimizer step `step` (from 0).

    Linear warm-up to the peak, then cosine (Loshchilov and Hutter, 2017) or linear decay towards 0
    at `total_steps`, or constant.
    """
    peak, kind = train.learning_rate, train.schedule
    warmup = warmup_steps(total_steps, train.warmup_ratio)
    if step < warmup:
        return peak * (step + 1) / warmup
    if kind == "constant":
        return peak
    progress = (step - warmup) / max(1, total_steps - warmup)
    if kind == "linear":
        return peak * (1.0 - progress)
    if kind == "cosine":
        return peak * 0.5 * (1.0 + math.cos(math.pi * progress))
    raise ValueError(f"unknown schedule {kind!r}")
