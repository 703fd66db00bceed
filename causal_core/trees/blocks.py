"""Cutting the attention over a prefix tree into dense blocks, with next to no wasted score.

A dense mask over all nodes would compute mostly scores that it then discards. In depth-first order
every chain of nodes without a fork is contiguous and so is every subtree, hence the nodes split
into *blocks*: contiguous queries, and keys that are a few contiguous ranges (the ancestors and the
block itself). Which split is cheapest follows from one measured number, the price of a call in
units of computed scores.

Shape legend: N nodes, q queries and k keys of a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

# Price of one more block, in scores (a query against a key): 16,384 is a 128 x 128 block.
DEFAULT_CALL_COST = 16_384


@dataclass(frozen=True)
class Block:
    """Queries [start, stop) against the nodes of `keys`, ranges in ascending order.

    `allowed` [q, k] is True where a query may attend; None: keys and queries are the same chain
    from a root, so that attention is causal and needs no mask.
    """

    start: int
    stop: int
    keys: tuple[tuple[int, int], ...]
    allowed: np.ndarray | None

    def scores(self) -> int:
        """Scores that the kernel computes (half the square where it knows causality)."""
        queries = self.stop - self.start
        if self.allowed is None:
            return queries * (queries + 1) // 2
        return int(self.allowed.size)


@dataclass
class TreeBlocks:
    """The blocks of one micro-batch; passed to every attention layer of its forward."""

    blocks: tuple[Block, ...]
    depths: np.ndarray  # [N]: position of each node on its path
    # The window of each layer that attended by these blocks: checked after the forward.
    attended: list[int | None] = field(default_factory=list)
    # Where wanted, the keys [1, j, N, d] and values [1, j, N, e] of each layer.
    kept: list[tuple[Tensor, Tensor]] | None = None
    _within: dict[int, tuple[Block, ...]] = field(default_factory=dict)
    _masks: dict[tuple[torch.dtype, int | None], list[Tensor | None]] = field(default_factory=dict)

    def within(self, window: int | None) -> tuple[Block, ...]:
        """The blocks where a node attends to the last `window` nodes of its path (None: to all)."""
        if window is None or window > int(self.depths.max(initial=0)):
            return self.blocks
        if window not in self._within:
            self._within[window] = tuple(_cut_keys(b, self.depths, window) for b in self.blocks)
        return self._within[window]

    def masks(self, dtype: torch.dtype, window: int | None = None) -> list[Tensor | None]:
        """The additive mask [q, k] of every block (0 or -inf), made once for all layers."""
        blocks = self.within(window)
        key = (dtype, None if blocks is self.blocks else window)
        if key not in self._masks:
            self._masks[key] = [_additive(block.allowed, dtype) for block in blocks]
        return self._masks[key]


def _cut_keys(block: Block, depths: np.ndarray, window: int) -> Block:
    """The block without the keys that lie `window` or more nodes before each of its queries.

    Its first query is the shallowest, and its ancestors come in the order of their depth: what no
    query reaches is the beginning of the keys.
    """
    unreached = max(0, int(depths[block.start]) - window + 1)
    ranges, left = [], unreached
    for start, stop in block.keys:
        cut = min(left, stop - start)
        left -= cut
        if start + cut < stop:
            ranges.append((start + cut, stop))
    queries = np.arange(block.start, block.stop)
    keys = np.concatenate([np.arange(start, stop) for start, stop in ranges])
    near = depths[queries][:, None] - depths[keys][None] < window
    if block.allowed is None:
        if near[np.tril_indices(len(queries))].all():
            return block
        allowed = near & (keys[None] <= queries[:, None])
    else:
        allowed = near & block.allowed[:, unreached:]
    return Block(block.start, block.stop, tuple(ranges), allowed)


def _additive(allowed: np.ndarray | None, dtype: torch.dtype) -> Tensor | None:
    if allowed is None:
        return None
    mask = torch.full(allowed.shape, -torch.inf, dtype=dtype)
    return mask.masked_fill_(torch.from_numpy(allowed), 0.0)


@dataclass
class TreeRows:
    """The dense layout of one micro-batch: rows of padded trees under a mask each."""

    mask: Tensor  # [R, 1, N, N] bool: True where the row's node may attend
    depths: Tensor  # [R, N] long: position of each node on its path
    attended: list[int | None] = field(default_factory=list)  # as in `TreeBlocks`
    kept: list[tuple[Tensor, Tensor]] | None = None  # [R, j, N, d and e], as in `TreeBlocks`
    _within: dict[int, Tensor] = field(default_factory=dict)

    def within(self, window: int | None) -> Tensor:
        """[R, 1, N, N] bool: the mask where a node attends to the last `window` of its path."""
        if window is None or window >= self.mask.shape[-1]:
            return self.mask
        if window not in self._within:
            near = self.depths[:, :, None] - self.depths[:, None, :] < window
            self._within[window] = near.unsqueeze(1).logical_and_(self.mask)
        return self._within[window]


def depth_first_order(parents: Sequence[int]) -> np.ndarray:
    """[N]: nodes in preorder (children in the order of their creation), roots included.

    Args:
        parents: Parent of each node, -1 for a root; a parent comes before its children.
    """
    children: list[list[int]] = [[] for _ in parents]
    roots: list[int] = []
    for node, parent in enumerate(parents):
        (roots if parent < 0 else children[parent]).append(node)
    order: list[int] = []
    stack = roots[::-1]
    while stack:
        node = stack.pop()
        order.append(node)
        stack.extend(reversed(children[node]))
    return np.array(order, dtype=np.int64)


def plan_blocks(parents: Sequence[int], call_cost: float = DEFAULT_CALL_COST) -> TreeBlocks:
    """The cheapest cut of a tree into blocks, by `call_cost` per block plus the scores of each.

    Dynamic programming from the leaves: a subtree is one block, or its chain is a block and its
    child subtrees, in order, are partitioned into runs, each one block or cut further.

    Args:
        parents: Parent of each node in depth-first order, -1 for a root.
        call_cost: Price of a block in scores; any value gives the same attention.
    """
    return TreeBlocks(tuple(_Planner(parents, call_cost).blocks()), depths_of(parents))


def depths_of(parents: Sequence[int]) -> np.ndarray:
    """[N]: position of each node on its path; a parent comes before its children."""
    depths: list[int] = []
    for parent in parents:
        depths.append(depths[parent] + 1 if parent >= 0 else 0)
    return np.array(depths, dtype=np.int64)


class _Planner:
    """Chains of the tree (maximal runs without a fork) and the best cut of each one's subtree."""

    def __init__(self, parents: Sequence[int], call_cost: float) -> None:
        self.parents = np.asarray(parents, dtype=np.int64)
        self.call_cost = call_cost
        size = len(self.parents)
        forks = np.bincount(self.parents[self.parents >= 0], minlength=size) > 1
        self.chain_of = np.zeros(size, dtype=np.int64)
        self.starts: list[int] = []
        self.above: list[int] = []  # parent chain
        for node, parent in enumerate(self.parents.tolist()):
            if parent < 0 or forks[parent] or parent != node - 1:
                self.starts.append(node)
                self.above.append(-1 if parent < 0 else int(self.chain_of[parent]))
            self.chain_of[node] = len(self.starts) - 1
        self.ends = [*self.starts[1:], size]
        count = len(self.starts)
        self.depth = [0] * count  # ancestors of the chain's first node
        self.subtree_end = list(self.ends)
        self.children: list[list[int]] = [[] for _ in range(count)]
        self.roots: list[int] = []
        for chain, above in enumerate(self.above):
            if above >= 0:
                self.depth[chain] = self.depth[above] + self.ends[above] - self.starts[above]
                self.children[above].append(chain)
            else:
                self.roots.append(chain)
        for chain in reversed(range(count)):
            if self.above[chain] >= 0:
                above = self.above[chain]
                self.subtree_end[above] = max(self.subtree_end[above], self.subtree_end[chain])

    def blocks(self) -> list[Block]:
        count = len(self.starts)
        cost = [0.0] * count
        runs: list[list[tuple[int, int]] | None] = [None] * count  # None: the subtree is one block
        for chain in reversed(range(count)):  # children come after their parent
            depth, length = self.depth[chain], self.ends[chain] - self.starts[chain]
            if not self.children[chain]:
                cost[chain] = self._price(length, depth, causal=depth == 0)
                continue
            below, partition = self._partition(self.children[chain], depth + length, cost)
            split = self._price(length, depth, causal=depth == 0) + below
            whole = self._price(self.subtree_end[chain] - self.starts[chain], depth)
            cost[chain] = min(split, whole)
            runs[chain] = partition if split < whole else None
        _, top = self._partition(self.roots, 0, cost)
        result: list[Block] = []
        self._emit(self.roots, top, runs, result)
        return sorted(result, key=lambda block: block.start)

    def _price(self, queries: int, ancestors: int, causal: bool = False) -> float:
        scores = queries * (ancestors + queries)
        return self.call_cost + (scores / 2 if causal else scores)

    def _partition(
        self, siblings: list[int], ancestors: int, cost: list[float]
    ) -> tuple[float, list[tuple[int, int]]]:
        """Cheapest runs [i, j) of neighbouring siblings; a run of one is cut by its own best."""
        count = len(siblings)
        best = [0.0] + [float("inf")] * count
        origin = [0] * (count + 1)
        for j in range(1, count + 1):
            for i in range(j - 1, -1, -1):
                if j - i == 1:
                    price = cost[siblings[i]]
                else:
                    nodes = self.subtree_end[siblings[j - 1]] - self.starts[siblings[i]]
                    price = self._price(nodes, ancestors)
                    if price > best[j]:
                        break  # longer runs cost more still
                if best[i] + price < best[j]:
                    best[j], origin[j] = best[i] + price, i
        runs: list[tuple[int, int]] = []
        j = count
        while j:
            runs.append((origin[j], j))
            j = origin[j]
        return best[count], runs[::-1]

    def _emit(
        self,
        siblings: list[int],
        partition: list[tuple[int, int]],
        runs: list[list[tuple[int, int]] | None],
        result: list[Block],
    ) -> None:
        todo = [(siblings, partition)]
        while todo:
            group, cut = todo.pop()
            for i, j in cut:
                first, last = group[i], group[j - 1]
                inner = runs[first] if j - i == 1 else None
                if inner is None:
                    result.append(self._block(first, self.starts[first], self.subtree_end[last]))
                else:
                    result.append(self._block(first, self.starts[first], self.ends[first]))
                    todo.append((self.children[first], inner))

    def _block(self, chain: int, start: int, stop: int) -> Block:
        ranges = [(start, stop)]
        above = self.above[chain]
        while above >= 0:
            ranges.append((self.starts[above], self.ends[above]))
            above = self.above[above]
        ranges.reverse()
        if len(ranges) == 1 and np.array_equal(
            self.parents[start + 1 : stop], np.arange(start, stop - 1)
        ):
            return Block(start, stop, ((start, stop),), None)
        ancestors = sum(e - s for s, e in ranges[:-1])
        own = np.zeros((stop - start, stop - start), dtype=bool)
        for node in range(start, stop):
            parent = int(self.parents[node])
            if parent >= start:
                own[node - start] = own[parent - start]
            own[node - start, node - start] = True
        shared = np.ones((stop - start, ancestors), dtype=bool)
        return Block(start, stop, _joined(ranges), np.concatenate([shared, own], axis=1))


def _joined(ranges: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Adjacent ranges as one: fewer copies."""
    joined = [ranges[0]]
    for start, stop in ranges[1:]:
        if start == joined[-1][1]:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return tuple(joined)
