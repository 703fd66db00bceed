"""Looking ahead changes nothing: whatever is asked for, the batch is the one of that step.

1. In order, out of order or after a jump (a resume), `get(k)` equals what is made on the spot.
2. Nothing beyond the last step is made; an error of the thread reaches the caller at its step.
"""

from __future__ import annotations

import threading

import pytest

from causal_core.run.prefetch import Prefetcher
from tests.tiny import random_triplets


class Rows:
    """Stands for a dataset: row i is triplet i."""

    def __init__(self, broken: int | None = None) -> None:
        self.triplets, self.broken = random_triplets(12, seed=0), broken

    def tokens(self, index):
        if index == self.broken:
            raise OSError("the cache is gone")
        return self.triplets[index]


def prefetcher(dataset, steps=4, world_size=1, rank=0, cut=None):
    made = []

    def triplets_of(step):
        made.append((step, threading.current_thread() is threading.main_thread()))
        return [dataset.tokens(row) for row in range(3 * step, 3 * step + 3)]

    return Prefetcher(triplets_of, cut or (lambda mine: []), rank, world_size, steps), made


def ids(batch):
    return [t.id for t in batch.triplets]


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [2, 3], [0, 2, 1], [3]])
def test_every_step_gets_its_own_batch(order):
    source, _ = prefetcher(Rows())
    for step in order:
        assert ids(source.get(step)) == [f"t{i}" for i in range(3 * step, 3 * step + 3)]
    source.close()


def test_the_next_batch_is_made_on_another_thread_and_none_beyond_the_last():
    source, made = prefetcher(Rows())
    for step in range(4):
        source.get(step)
    source.close()
    assert made == [(0, True), (1, False), (2, False), (3, False)]


def test_shares_of_the_workers_make_up_the_batch():
    parts = []
    for rank in range(2):
        source, _ = prefetcher(Rows(), world_size=2, rank=rank)
        batch = source.get(1)
        parts += [t.id for t in batch.mine]
        assert batch.denominators.triplets == 3
        source.close()
    assert sorted(parts) == ["t3", "t4", "t5"]


def test_an_error_is_raised_at_its_step():
    source, _ = prefetcher(Rows(broken=4))
    source.get(0)
    with pytest.raises(OSError, match="the cache is gone"):
        source.get(1)
    source.close()
