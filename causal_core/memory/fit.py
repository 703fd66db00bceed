"""The largest micro-batch and the largest rank that fit a budget."""

from __future__ import annotations

from collections.abc import Callable

from causal_core.amounts import gib
from causal_core.config import Config
from causal_core.errors import ConfigError
from causal_core.memory.plan import Calibration, Device, MemoryPlan, predict
from causal_core.memory.shapes import DataProfile, longest_tree
from causal_core.trees.packing import Packing

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
    data: DataProfile | None = None,
    packing: Packing | None = None,
    calibration: Calibration | None = None,
) -> int | None:
    """The most tree nodes of a micro-batch whose step fits `budget_bytes` of a device.

    What fits is the *allocated* peak plus what lies outside of torch's allocator.

    Args:
        at_least: The smallest that is of use; default: `least_tokens`.
        at_most: Default: what a whole global batch can need.
        calibration: What a rehearsed step showed the plan to lack.

    Returns:
        None when not even `at_least` fits.
    """
    least = at_least or least_tokens(config, data)
    longest = data.longest_tree if data else longest_tree(config)
    most = at_most or min(MOST_TOKENS, config.train.global_batch * longest)

    def required(tokens: int) -> int:
        plan = predict(
            config, micro_batch_tokens=tokens, world_size=world_size, device=device, data=data,
            packing=packing,
        )  # fmt: skip
        return plan.required_bytes if calibration is None else calibration.required_bytes(plan)

    return _largest(required, budget_bytes, least, max(least, most), STEP)


def least_tokens(config: Config, data: DataProfile | None = None) -> int:
    """The smallest micro-batch of use: the largest triplet's tree, or one branch of
    `data.max_length` where no data is known."""
    return data.longest_tree if data else config.data.max_length


def automatic_micro_batch(
    config: Config,
    *,
    available_bytes: int | None = None,
    data: DataProfile | None = None,
    packing: Packing | None = None,
    calibration: Calibration | None = None,
) -> int:
    """The micro-batch of `train.micro_batch_tokens: auto`.

    Args:
        available_bytes: Of the device, where it is at hand; `resources.gpu_memory` goes first.
        data: What real micro-batches can look like, where data is known.
        packing: Their layout; default: the device's.
        calibration: What a rehearsed step showed the plan to lack.

    Raises:
        ConfigError: no amount of memory is known, or not even the smallest micro-batch fits.
    """
    budget = config.resources.gpu_memory_bytes or available_bytes
    if budget is None:
        raise ConfigError(
            "train.micro_batch_tokens=auto needs to know the device's memory, and none is here to "
            "ask: set resources.gpu_memory (e.g. 24GiB), or give a number of tokens"
        )
    tokens = largest_micro_batch(
        config, budget, data=data, packing=packing, calibration=calibration
    )
    if tokens is None:
        least = least_tokens(config, data)
        raise ConfigError(
            f"train.micro_batch_tokens=auto: not even {least:,} tokens fit {gib(budget)}; "
            "`causal plan` shows what each lever (checkpointing, nf4, a smaller rank) would save"
        )
    return tokens


def largest_rank(
    config: Config,
    budget_bytes: int,
    *,
    world_size: int | None = None,
    device: Device | None = None,
    data: DataProfile | None = None,
) -> int | None:
    """The largest LoRA rank that fits at the config's micro-batch; None when rank 1 does not."""

    def required(rank: int) -> int:
        other = config.model_copy(update={"lora": config.lora.model_copy(update={"rank": rank})})
        return predict(other, world_size=world_size, device=device, data=data).required_bytes

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


def planned_tokens(config: Config) -> int:
    """The micro-batch budget of a config as a number; `auto` is the largest that fits.

    Raises:
        ConfigError: `auto` without a known amount of memory, or with one that nothing fits.
    """
    tokens = config.train.micro_batch_tokens
    if tokens != "auto":
        return tokens
    return automatic_micro_batch(config)


def predict_run(
    config: Config, *, device: Device | None = None, data: DataProfile | None = None
) -> MemoryPlan:
    """`predict` for a config as it stands, its micro-batch resolved where that is `auto`."""
    return predict(config, micro_batch_tokens=planned_tokens(config), device=device, data=data)
