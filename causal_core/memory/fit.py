"""The largest micro-batch and the largest rank that fit a budget."""

from __future__ import annotations

from collections.abc import Callable

from causal_core.config import Config
from causal_core.memory.plan import Device, predict
from causal_core.memory.shapes import longest_tree

STEP = 64  # micro-batches are sought in multiples of this many tokens
MOST_TOKENS = 262144
MOST_RANK = 512


def largest_micro_batch(
    config: Config,
    budget_bytes: int,
    *,
    at_least: int | None = None,
    at_most: int | None = None,
    world_size: int | None = None,
    device: Device | None = None,
) -> int | None:
    """The largest micro-batch, in padded tree nodes, whose step fits `budget_bytes` of a device.

    What fits is the *allocated* peak plus what lies outside of torch's allocator.

    Args:
        at_least: The smallest that is of use, i.e. the largest triplet's tree; default: one branch
            of `data.max_length`.
        at_most: Default: what a whole global batch can need.

    Returns:
        None when not even `at_least` fits.
    """
    least = at_least or config.data.max_length
    most = at_most or min(MOST_TOKENS, config.train.global_batch * longest_tree(config))

    def required(tokens: int) -> int:
        plan = predict(config, micro_batch_tokens=tokens, world_size=world_size, device=device)
        return plan.required_bytes

    return _largest(required, budget_bytes, least, max(least, most), STEP)


def largest_rank(
    config: Config,
    budget_bytes: int,
    *,
    world_size: int | None = None,
    device: Device | None = None,
) -> int | None:
    """The largest LoRA rank that fits at the config's micro-batch; None when rank 1 does not."""

    def required(rank: int) -> int:
        other = config.model_copy(update={"lora": config.lora.model_copy(update={"rank": rank})})
        return predict(other, world_size=world_size, device=device).required_bytes

    return _largest(required, budget_bytes, 1, MOST_RANK, 1)


def _largest(
    required: Callable[[int], int], budget: int, least: int, most: int, step: int
) -> int | None:
    """The largest value of a growing, nearly affine function within a budget: follow the chord.

    Values are `least` plus multiples of `step`.
    """
    low, high = least, most
    low_bytes = required(low)
    if low_bytes > budget:
        return None
    high_bytes = required(high)
    if high_bytes <= budget:
        return high
    while high - low > step:
        chord = low + (high - low) * (budget - low_bytes) / max(1, high_bytes - low_bytes)
        guess = least + int((chord - least) // step) * step
        guess = min(max(guess, low + step), high - 1)
        found = required(guess)
        if found <= budget:
            low, low_bytes = guess, found
            if low + step < high:  # the chord is nearly exact: the next one up ends the search
                above = required(low + step)
                if above > budget:
                    return low
                low, low_bytes = low + step, above
        else:
            high, high_bytes = guess, found
    return low
