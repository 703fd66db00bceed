"""Global batches made ready in the background, one step ahead.

Reading rows, building trees and collating them runs on a thread while the step before computes.
What comes out depends on the step's number alone, so looking ahead changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from causal_core.loss.objective import Denominators
from causal_core.tokens.batches import share
from causal_core.tokens.triplet import TripletTokens
from causal_core.trees.packing import MicroBatch


@dataclass(frozen=True)
class GlobalBatch:
    """The triplets of one optimizer step and this worker's part of them, cut and collated."""

    triplets: list[TripletTokens]
    mine: list[TripletTokens]
    denominators: Denominators
    micro_batches: list[MicroBatch]


class Prefetcher:
    """Makes `GlobalBatch` number k and, while the caller works on it, number k + 1.

    Args:
        triplets_of: The global batch of a step (from 0); called on the background thread.
        cut: This worker's share as micro-batches; called on the background thread.
        steps: How many steps there are; nothing is prepared beyond.
    """

    def __init__(
        self,
        triplets_of: Callable[[int], list[TripletTokens]],
        cut: Callable[[Sequence[TripletTokens]], list[MicroBatch]],
        rank: int,
        world_size: int,
        steps: int,
    ) -> None:
        self._triplets_of, self._cut = triplets_of, cut
        self._rank, self._world_size, self._steps = rank, world_size, steps
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
        self._ahead: tuple[int, Future[GlobalBatch]] | None = None

    def get(self, step: int) -> GlobalBatch:
        """The global batch of a step; errors of the background thread are raised here."""
        number, future = self._ahead or (-1, None)
        ready = future.result() if future is not None and number == step else self._make(step)
        if step + 1 < self._steps:
            self._ahead = (step + 1, self._thread.submit(self._make, step + 1))
        return ready

    def close(self) -> None:
        """Waits for the batch in the making and ends the thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _make(self, step: int) -> GlobalBatch:
        triplets = self._triplets_of(step)
        shares = share([t.size_bound() for t in triplets], self._world_size)
        mine = [triplets[i] for i in shares[self._rank]]
        return GlobalBatch(
            triplets, mine, Denominators.of(triplets), self._cut(mine) if mine else []
        )
