"""Prefix trees: every distinct prefix token of a set of sequences is computed once.

The branches of a triplet share S, often much of U, and its answer; triplets may share S. Added to
one trie they become rows of *nodes*: a node's position is its depth, and it attends to its
ancestors and itself only, so its hidden state equals that of the same token in a separate,
unpadded forward (invariant I1). Rows are padded to the longest of a micro-batch; a padding node
attends to itself alone and is read by nobody.

Shape legend: R rows, N nodes of the longest row, B branches per row at most, Z pooled branches, T
triplets, J injections, n label positions of the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from causal_core.trees.blocks import DEFAULT_CALL_COST, TreeBlocks, depth_first_order, plan_blocks
from causal_core.trees.intervals import TreeIntervals, padded_size
from causal_core.trees.labels import Entry, LabelChunk, cut_labels
from causal_core.trees.needs import BENIGN, INJECTION
from causal_core.trees.staging import moved, staged

PAD_POSITION = 0


@dataclass
class TreeBatch:
    """One micro-batch of packed prefix trees, ready for `CausalModel.forward`."""

    input_ids: Tensor  # [R, N] long
    position_ids: Tensor  # [R, N] long: depth in the trie
    attention_mask: Tensor  # [R, 1, N, N] bool: True where the row's node may attend
    pool_weights: Tensor  # [R, B, N] float32: 1 / length on each prompt node of a branch
    pool_index: Tensor  # [Z] long: which of the R * B pooled branches are real, in order
    # Which of the Z pooled branches are U [T] and, where they are pooled, U' [T] and U* [J] ...
    branch_index: dict[str, Tensor]
    injection_owner: Tensor  # [J] long: ... and the triplet (position in T) of each pooled U*
    label_index: Tensor  # [n] long: flat R * N index of every node that predicts a label
    labels: list[LabelChunk]  # what they predict
    triplets: int
    nodes: int  # distinct tokens computed, without padding
    path_tokens: int  # tokens that separate, unpadded forwards would compute
    # Flat batches (R = 1): how attention goes over the nodes; the mask is a dummy.
    blocks: TreeBlocks | None = None  # without padding
    intervals: TreeIntervals | None = None  # padded to whole buckets
    # Where the batch is to be copied to a device as a whole: what its tensors are views of.
    buffer: Tensor | None = None

    @property
    def charged(self) -> int:
        """Nodes that `train.micro_batch_tokens` bounds: of rows with their padding; what fills up
        the last bucket of a flat batch is less than a bucket."""
        return self.nodes if self.flat else self.input_ids.numel()

    @property
    def flat(self) -> bool:
        """Whether it is one tree in one sequence."""
        return self.blocks is not None or self.intervals is not None

    def staged(self, device: torch.device) -> TreeBatch:
        """The batch ready for its copy to a device; itself where there is nothing to copy.

        Takes longer than the copy itself: for the thread that prepares batches.
        """
        if self.buffer is not None or self.input_ids.device.type == device.type:
            return self
        batch, buffer = staged(replace(self, blocks=None), pinned=device.type == "cuda")
        return replace(batch, blocks=self.blocks, buffer=buffer)

    def to(self, device: torch.device) -> TreeBatch:
        """The batch on a device, by one copy."""
        ready = self.staged(device)
        if ready.buffer is None:  # there already
            return ready
        batch = moved(replace(ready, blocks=None, buffer=None), ready.buffer, device)
        return replace(batch, blocks=self.blocks)


class PrefixTree:
    """A trie over token sequences; nodes are numbered in the order of their creation."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.depths: list[int] = []
        self._children: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, ids: Sequence[int]) -> list[int]:
        """Adds a sequence and returns the node of each of its tokens."""
        path = []
        parent = -1
        for depth, token in enumerate(ids):
            node = self._children.get((parent, token))
            if node is None:
                node = len(self.tokens)
                self._children[(parent, token)] = node
                self.tokens.append(token)
                self.parents.append(parent)
                self.depths.append(depth)
            path.append(node)
            parent = node
        return path

    def ancestor_mask(self) -> np.ndarray:
        """[N, N] bool: True where the column is the row's node or one of its ancestors."""
        size = len(self)
        mask = np.zeros((size, size), dtype=bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                mask[node] = mask[parent]  # a parent is always numbered before its children
            mask[node, node] = True
        return mask


@dataclass
class TreeRow:
    """One row under construction: a trie, the branches to pool, the labels to predict."""

    tree: PrefixTree = field(default_factory=PrefixTree)
    pooled: list[tuple[str, list[int]]] = field(default_factory=list)  # branch, its path
    labels: dict[str, list[Entry]] = field(default_factory=dict)
    owners: list[int] = field(default_factory=list)
    path_tokens: int = 0

    def add_prompt(self, prompt: Sequence[int], branch: str = BENIGN) -> list[int]:
        """Adds a prompt and marks it for pooling; U comes first of a triplet's.

        Raises:
            ValueError: the prompt is empty: there is nothing to pool (bug 8 of the reports).
        """
        if not prompt:
            raise ValueError("an empty prompt has no representation: the mean over it is undefined")
        path = self.tree.add(prompt)
        self.pooled.append((branch, path))
        return path

    def add_continuation(
        self,
        prompt: Sequence[int],
        answer: Sequence[int],
        group: str,
        owner: int,
        injection: int = 0,
    ) -> None:
        """Adds `answer` after `prompt` and labels each of its tokens in `group`.

        The last answer token is predicted but never read, so it gets no node.
        """
        if not answer:
            return
        path = self.tree.add([*prompt, *answer[:-1]])
        first = len(prompt) - 1  # the node of the last prompt token predicts the first answer token
        entries = self.labels.setdefault(group, [])
        entries.extend(
            (path[first + offset], token, owner, injection) for offset, token in enumerate(answer)
        )


def _branches(rows: Sequence[TreeRow]) -> tuple[dict[str, Tensor], Tensor]:
    """`TreeBatch.branch_index` and `injection_owner` of rows, in their order."""
    names = [name for row in rows for name, _ in row.pooled]
    owner, owners = -1, []
    for name in names:
        owner += name == BENIGN
        if name == INJECTION:
            owners.append(owner)
    index = {
        branch: torch.tensor([i for i, name in enumerate(names) if name == branch])
        for branch in dict.fromkeys(names)
    }
    return index, torch.tensor(owners, dtype=torch.long)


def collate(rows: Sequence[TreeRow], groups: Sequence[str]) -> TreeBatch:
    """Pads rows to the longest and gathers pooling weights, label positions and targets.

    Args:
        rows: At least one row with at least one pooled prompt each.
        groups: The label groups of the batch; a group without labels comes out empty.
    """
    count, width = len(rows), max(len(row.tree) for row in rows)
    pooled_width = max(len(row.pooled) for row in rows)
    input_ids = np.zeros((count, width), dtype=np.int64)
    position_ids = np.full((count, width), PAD_POSITION, dtype=np.int64)
    mask = np.zeros((count, 1, width, width), dtype=bool)
    pool = np.zeros((count, pooled_width, width), dtype=np.float32)
    pool_index: list[int] = []
    index, owners = _branches(rows)
    label_slots: dict[int, int] = {}
    entries: dict[str, list[Entry]] = {name: [] for name in groups}
    diagonal = np.arange(width)
    for r, row in enumerate(rows):
        size = len(row.tree)
        input_ids[r, :size] = row.tree.tokens
        position_ids[r, :size] = row.tree.depths
        mask[r, 0, :size, :size] = row.tree.ancestor_mask()
        mask[r, 0, diagonal[size:], diagonal[size:]] = True
        for b, (_, path) in enumerate(row.pooled):
            pool[r, b, path] = 1.0 / len(path)
            pool_index.append(r * pooled_width + b)
        for name in groups:
            for node, target, owner, injection in row.labels.get(name, ()):
                slot = label_slots.setdefault(r * width + node, len(label_slots))
                entries[name].append((slot, target, owner, injection))
    return TreeBatch(
        input_ids=torch.from_numpy(input_ids),
        position_ids=torch.from_numpy(position_ids),
        attention_mask=torch.from_numpy(mask),
        pool_weights=torch.from_numpy(pool),
        pool_index=torch.tensor(pool_index, dtype=torch.long),
        branch_index=index,
        injection_owner=owners,
        label_index=torch.tensor(list(label_slots), dtype=torch.long),
        labels=cut_labels(entries),
        triplets=sum(len(set(row.owners)) for row in rows),
        nodes=sum(len(row.tree) for row in rows),
        path_tokens=sum(row.path_tokens for row in rows),
    )


def collate_flat(
    row: TreeRow,
    groups: Sequence[str],
    call_cost: float = DEFAULT_CALL_COST,
    intervals: bool = False,
) -> TreeBatch:
    """One tree as a flat batch, its nodes in depth-first order.

    Arguments as for `collate`, `call_cost` as for `plan_blocks`.

    Args:
        intervals: Pad to whole buckets, for attention by one kernel under an interval mask (see
            `intervals.py`); otherwise attention runs block by block (`blocks.py`), unpadded.
    """
    order = depth_first_order(row.tree.parents)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    parents = np.array(row.tree.parents, dtype=np.int64)[order]
    parents[parents >= 0] = rank[parents[parents >= 0]]
    width = padded_size(len(order)) if intervals else len(order)
    tokens, depths = np.zeros(width, np.int64), np.full(width, PAD_POSITION, np.int64)
    tokens[: len(order)] = np.array(row.tree.tokens)[order]
    depths[: len(order)] = np.array(row.tree.depths)[order]
    alone = [-1] * (width - len(order))
    pool = np.zeros((1, len(row.pooled), width), dtype=np.float32)
    for b, (_, path) in enumerate(row.pooled):
        pool[0, b, rank[path]] = 1.0 / len(path)
    index, owners = _branches([row])
    label_slots: dict[int, int] = {}
    entries: dict[str, list[Entry]] = {name: [] for name in groups}
    for name in groups:
        for node, target, owner, injection in row.labels.get(name, ()):
            slot = label_slots.setdefault(int(rank[node]), len(label_slots))
            entries[name].append((slot, target, owner, injection))
    return TreeBatch(
        input_ids=torch.from_numpy(tokens[None]),
        position_ids=torch.from_numpy(depths[None]),
        attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool),
        pool_weights=torch.from_numpy(pool),
        pool_index=torch.arange(len(row.pooled)),
        branch_index=index,
        injection_owner=owners,
        label_index=torch.tensor(list(label_slots), dtype=torch.long),
        labels=cut_labels(entries),
        triplets=len(set(row.owners)),
        nodes=len(order),
        path_tokens=row.path_tokens,
        blocks=None if intervals else plan_blocks(parents, call_cost),
        intervals=TreeIntervals.of([*parents.tolist(), *alone]) if intervals else None,
    )
