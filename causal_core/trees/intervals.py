"""The attention of a flat tree as one interval per node: what a fused kernel takes for a mask.

In depth-first order the nodes below a node follow it without a gap, so that a query q may attend
to a key k exactly where `k <= q < end[k]`: N integers instead of N x N booleans. A kernel goes over
the scores in squares of `BUCKET` rows and columns; which of them hold an allowed score, and which
hold no other, follows from the smallest and the largest integer of each bucket.

Shape legend: N nodes, a multiple of `BUCKET`; C buckets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from causal_core.trees.blocks import depths_of

BUCKET = 128  # rows and columns of a square, and what the number of nodes is padded to


@dataclass(frozen=True)
class Squares:
    """Which squares a kernel computes, int32: by rows of queries for the forward, by columns of
    keys for the backward; "mixed" ones under the mask, "full" ones without.

    Of each row the first `*_count` entries of the index hold the squares' columns.
    """

    mixed_count: Tensor  # [1, 1, C]
    mixed: Tensor  # [1, 1, C, C]
    full_count: Tensor
    full: Tensor
    mixed_count_by_key: Tensor
    mixed_by_key: Tensor
    full_count_by_key: Tensor
    full_by_key: Tensor


@dataclass
class TreeIntervals:
    """A flat tree of one micro-batch, padded by nodes that attend to themselves alone."""

    end: Tensor  # [N] int32: the first node that is not below
    depth: Tensor  # [N] int32: position of each node on its path
    squares: Squares
    on_host: tuple[np.ndarray, np.ndarray]  # end and depth, where squares are planned
    deepest: int  # depth of any node at most
    attended: list[int | None] = field(default_factory=list)  # as in `TreeBlocks`
    kept: list[tuple[Tensor, Tensor]] | None = None  # as in `TreeBlocks`
    # The masks that a model has made for its windows, by `reach`.
    masks: dict[int | None, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, parents: Sequence[int]) -> TreeIntervals:
        """From the parents of nodes in depth-first order (-1: none), padded already."""
        end, depths = subtree_ends(parents), depths_of(parents)
        return cls(
            torch.from_numpy(end),
            torch.from_numpy(depths.astype(np.int32)),
            plan_squares(end, depths),
            (end, depths),
            int(depths.max(initial=0)),
        )

    def reach(self, window: int | None) -> int | None:
        """The window, where it cuts any path of the tree."""
        return None if window is None or window > self.deepest else window

    def within(self, window: int | None) -> Squares:
        """The squares where a node attends to the last `window` nodes of its path (None: all)."""
        if self.reach(window) is None:
            return self.squares
        return plan_squares(*self.on_host, window)


def padded_size(nodes: int) -> int:
    """Nodes of a flat tree with its padding: whole buckets, two at least (a compiler makes code of
    its own for a dimension of one)."""
    return max(2, -(-nodes // BUCKET)) * BUCKET


def subtree_ends(parents: Sequence[int]) -> np.ndarray:
    """[N] int32: the first node after each node's subtree, in depth-first order."""
    end = list(range(1, len(parents) + 1))
    for node in range(len(parents) - 1, -1, -1):
        parent = parents[node]
        if parent >= 0 and end[parent] < end[node]:
            end[parent] = end[node]
    return np.array(end, dtype=np.int32)


def plan_squares(end: np.ndarray, depth: np.ndarray, window: int | None = None) -> Squares:
    """The squares with an allowed score; with a window perhaps some more, which costs time alone.

    Args:
        end: [N], of `subtree_ends`.
        depth: [N].
    """
    first = np.arange(0, len(end), BUCKET)
    ends, depths = end.reshape(-1, BUCKET), depth.reshape(-1, BUCKET)
    before = first[None] < first[:, None]  # [C queries, C keys]
    some = before & (ends.max(1)[None] > first[:, None])
    every = before & (ends.min(1)[None] >= first[:, None] + BUCKET)
    if window is not None:
        some &= depths.min(1)[:, None] - depths.max(1)[None] < window
        every &= depths.max(1)[:, None] - depths.min(1)[None] < window
    np.fill_diagonal(some, True)  # where every node attends to itself
    mixed = some & ~every
    tables = (table for dense in (mixed, every, mixed.T, every.T) for table in _ordered(dense))
    return Squares(*tables)


def _ordered(dense: np.ndarray) -> tuple[Tensor, Tensor]:
    """Of each row, how many are True, and their columns before all others, in order."""
    count = dense.sum(1, dtype=np.int32)
    columns = np.argsort(~dense, axis=1, kind="stable").astype(np.int32)
    return torch.from_numpy(count)[None, None], torch.from_numpy(columns)[None, None]
