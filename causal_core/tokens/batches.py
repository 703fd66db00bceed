"""Which triplets form global batch k, and how workers share one (invariants I2 and I3).

The data position of a run is one number: how many triplets the run has consumed. Everything else
follows from (seed, position), so a resume, on any number of workers, continues the same data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@lru_cache(maxsize=2)
def epoch_order(rows: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch: a permutation of `rows` that depends on (seed, epoch) alone."""
    return np.random.default_rng([seed, epoch]).permutation(rows)


@dataclass(frozen=True)
class StepPlan:
    """How many optimizer steps a run has and what each consumes: computed here, nowhere else.

    Every epoch ends with its last partial window, which is a step of its own.
    """

    rows: int
    global_batch: int
    epochs: int
    max_steps: int | None = None

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError("a run needs at least one training triplet")

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.rows / self.global_batch)

    @property
    def total_steps(self) -> int:
        steps = self.epochs * self.steps_per_epoch
        return steps if self.max_steps is None else min(steps, self.max_steps)

    @property
    def returns(self) -> bool:
        """Whether any row comes more than once."""
        return self.total_steps > self.steps_per_epoch

    def samples_after(self, step: int) -> int:
        """Triplets consumed after `step` optimizer steps: the data position."""
        epoch, within = divmod(step, self.steps_per_epoch)
        return epoch * self.rows + min(within * self.global_batch, self.rows)

    def epoch_of(self, step: int) -> int:
        """The epoch (from 0) that optimizer step `step` (from 0) draws from."""
        return step // self.steps_per_epoch

    def is_epoch_end(self, step: int) -> bool:
        """Whether `step` finished optimizer steps end an epoch."""
        return step % self.steps_per_epoch == 0

    def batch(self, step: int, seed: int) -> np.ndarray:
        """Row indices of the global batch of optimizer step `step` (from 0)."""
        epoch, within = divmod(step, self.steps_per_epoch)
        order = epoch_order(self.rows, seed, epoch)
        return order[within * self.global_batch : (within + 1) * self.global_batch]


def share(costs: Sequence[int], world_size: int) -> list[list[int]]:
    """Splits positions 0..len(costs)-1 among workers so that the largest share is small.

    Longest processing time first (Graham, 1969): each item, largest first, goes to the worker
    with the least so far. Deterministic; a share may be empty when there are fewer items than
    workers. Within a share the order is that of the batch.
    """
    shares: list[list[int]] = [[] for _ in range(world_size)]
    loads = [0] * world_size
    for position in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        worker = loads.index(min(loads))
        shares[worker].append(position)
        loads[worker] += costs[position]
    return [sorted(s) for s in shares]
