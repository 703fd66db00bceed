"""The sizes of a micro-batch, which is all that its memory depends on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from causal_core.config import Config
from causal_core.loss.objective import needs_of
from causal_core.tokens.dataset import TripletDataset
from causal_core.trees.blocks import TreeBlocks, plan_blocks
from causal_core.trees.intervals import TreeIntervals, padded_size
from causal_core.trees.labels import LABELS_AT_ONCE, LabelChunk, LabelGroup
from causal_core.trees.needs import BRANCH_OF, INJECTION, ONCE_A_TRIPLET, Needs
from causal_core.trees.packing import ROWS, Packing, add_triplet, tree_nodes
from causal_core.trees.prefix_tree import TreeBatch, TreeRow
from causal_core.trees.staging import each_tensor

# Without data, one node in eight is taken to predict a label (answers are short beside prompts).
ASSUMED_LABEL_SHARE = 1 / 8


@dataclass(frozen=True)
class BatchShape:
    """Sizes of one micro-batch of packed trees (see `TreeBatch`)."""

    rows: int
    nodes: int  # of the longest row: what every row is padded to
    triplets: int
    branches: tuple[tuple[str, int], ...]  # pooled ones of each kind, of all triplets
    injections: int  # of all triplets
    positions: int  # nodes that predict at least one label
    labels: tuple[tuple[str, int], ...]  # predictions by label group
    flat: bool = False  # one sequence, instead of rows with a mask
    intervals: bool = False  # ... with attention under an interval mask, instead of in blocks
    block_scores: int = 0  # elements of the blocks' masks

    @property
    def tokens(self) -> int:
        """Tree nodes, padding included: what `train.micro_batch_tokens` bounds."""
        return self.rows * self.nodes

    @classmethod
    def of(cls, batch: TreeBatch) -> BatchShape:
        """The shape of a real micro-batch."""
        rows, nodes = batch.input_ids.shape
        return cls(
            rows=rows,
            nodes=nodes,
            triplets=batch.triplets,
            branches=tuple((name, len(index)) for name, index in batch.branch_index.items()),
            injections=_injection_count(batch),
            positions=len(batch.label_index),
            labels=_label_counts(batch.labels),
            flat=batch.flat,
            intervals=batch.intervals is not None,
            block_scores=_mask_elements(batch.blocks),
        )

    def meta_batch(self) -> TreeBatch:
        """A micro-batch of this shape on the meta device: sizes without contents."""

        def integers(*sizes: int) -> torch.Tensor:
            return torch.empty(sizes, dtype=torch.long, device="meta")

        rows, nodes = self.rows, self.nodes
        pooled = sum(count for _, count in self.branches)
        mask = (1, 1, 1, 1) if self.flat else (rows, 1, nodes, nodes)
        return TreeBatch(
            input_ids=integers(rows, nodes),
            position_ids=integers(rows, nodes),
            attention_mask=torch.empty(mask, dtype=torch.bool, device="meta"),
            pool_weights=torch.empty((rows, -(-pooled // rows), nodes), device="meta"),
            pool_index=integers(pooled),
            branch_index={name: integers(count) for name, count in self.branches},
            injection_owner=integers(dict(self.branches).get(INJECTION, 0)),
            label_index=integers(self.positions),
            labels=self._label_chunks(),
            triplets=self.triplets,
            nodes=self.tokens,
            path_tokens=self.tokens,
            blocks=self._blocks(),
            intervals=self._intervals(),
        )

    def _blocks(self) -> TreeBlocks | None:
        if not self.flat or self.intervals:
            return None
        return plan_blocks(_forked(self.nodes, self.triplets))

    def _intervals(self) -> TreeIntervals | None:
        if not self.intervals:
            return None
        tree = TreeIntervals.of(_forked(self.nodes, self.triplets))
        return each_tensor(tree, lambda values: values.to("meta"))

    def _label_chunks(self) -> list[LabelChunk]:
        """As `cut_labels` would cut them if every triplet had as many labels as the others."""
        chunks = max(1, -(-self.positions // LABELS_AT_ONCE))

        def integers(total: int, number: int) -> torch.Tensor:
            size = total * (number + 1) // chunks - total * number // chunks
            return torch.empty(size, dtype=torch.long, device="meta")

        return [
            LabelChunk(
                integers(self.positions, number),
                {
                    name: LabelGroup(*(integers(count, number) for _ in range(4)))
                    for name, count in self.labels
                },
                integers(max(1, self.injections), number),
            )
            for number in range(chunks)
        ]


def _injection_count(batch: TreeBatch) -> int:
    return sum(len(chunk.injection_owner) for chunk in batch.labels)


def _label_counts(chunks: Sequence[LabelChunk]) -> tuple[tuple[str, int], ...]:
    counts: dict[str, int] = {}
    for chunk in chunks:
        for name, group in chunk.groups.items():
            counts[name] = counts.get(name, 0) + len(group)
    return tuple(counts.items())


def _mask_elements(blocks: TreeBlocks | None) -> int:
    if blocks is None:
        return 0
    return sum(block.allowed.size for block in blocks.blocks if block.allowed is not None)


def _forked(nodes: int, trees: int) -> list[int]:
    """Parents of `nodes` nodes in `trees` trees: a chain of a third, and two more from its end."""
    parents: list[int] = []
    for number in range(trees):
        size = nodes * (number + 1) // trees - len(parents)
        root, third = len(parents), max(1, size // 3)
        for offset in range(size):
            fork = offset in (third, 2 * third)
            parent = root + third - 1 if fork else root + offset - 1
            parents.append(parent if offset else -1)
    return parents


@dataclass(frozen=True)
class DataProfile:
    """What a dataset's micro-batches can look like."""

    longest_tree: int  # nodes of the largest triplet's tree
    label_share: float  # nodes that predict a label, per node
    injections: int  # of the row with most

    @classmethod
    def of(cls, dataset: TripletDataset, needs: Needs) -> DataProfile:
        """From the largest triplets of a dataset: an upper end, not an average."""
        bounds = dataset.size_bounds()
        largest = [dataset.tokens(int(i)) for i in np.argsort(-bounds, kind="stable")[:_PROFILED]]
        nodes = [tree_nodes(triplet, needs) for triplet in largest]
        labels = 0
        for triplet in largest:
            row = TreeRow()
            add_triplet(row, triplet, needs, owner=0)
            labels += len({node for group in row.labels.values() for node, _, _, _ in group})
        return cls(max(nodes), labels / sum(nodes), dataset.most_injections())


_PROFILED = 64  # triplets


def assumed_shape(
    config: Config, tokens: int, data: DataProfile | None = None, packing: Packing = ROWS
) -> BatchShape:
    """The micro-batch of `tokens` tree nodes, padding included, that needs most memory.

    Rows are as wide as the largest triplet's tree; without data, as one whose branches have
    `data.max_length` tokens each and share nothing. Wide rows cost most, because attention masks
    grow with the square of it.
    """
    needs = needs_of(config.loss)
    share = data.label_share if data else ASSUMED_LABEL_SHARE
    longest = data.longest_tree if data else longest_tree(config)
    tokens = min(tokens, longest * config.train.global_batch)  # it ends with the global batch
    width = min(tokens, longest)
    trees = -(-tokens // width)
    rows = 1 if packing.flat else trees
    nodes = padded_size(tokens) if packing.intervals else tokens // rows
    injections = data.injections if data else assumed_injections(config)
    kinds = _labelled_branches(needs)

    def of_triplet(branch: str) -> int:
        return injections if branch == INJECTION else 1

    def answers_of(group: str) -> int:
        return 1 if group in ONCE_A_TRIPLET else injections

    answers = sum(map(of_triplet, kinds))
    answer = max(1, round(rows * nodes * share / max(1, answers)))
    return BatchShape(
        rows=rows,
        nodes=nodes,
        triplets=trees,
        branches=tuple((branch, trees * of_triplet(branch)) for branch in needs.branches),
        injections=trees * injections,
        positions=max(1, answer * answers),
        labels=tuple((group, answer * answers_of(group)) for group in needs.groups),
        flat=packing.flat,
        intervals=packing.intervals,
        block_scores=(
            _mask_elements(plan_blocks(_forked(nodes, trees)))
            if packing.flat and not packing.intervals
            else 0
        ),
    )


def longest_tree(config: Config) -> int:
    """Nodes of a triplet whose branches have `data.max_length` tokens each and share nothing."""
    branches = _branches_with_nodes(needs_of(config.loss))
    injections = assumed_injections(config)
    paths = sum(injections if branch == INJECTION else 1 for branch in branches)
    return config.data.max_length * paths


def assumed_injections(config: Config) -> int:
    """Of a row, without data."""
    return config.data.attacks_per_row or 1


def candidates(shapes: Iterable[BatchShape]) -> list[BatchShape]:
    """The shapes of which one needs most: the most tree nodes (then width, then
    labels), and the most labels, whose logits outweigh the rest where the vocabulary is large for
    the model."""
    seen = list(shapes)
    if not seen:
        return []
    by_tokens = max(seen, key=lambda s: (s.tokens, s.nodes, s.positions))
    by_labels = max(seen, key=lambda s: (s.positions, s.tokens, s.nodes))
    return [by_tokens] if by_tokens == by_labels else [by_tokens, by_labels]


def _labelled_branches(needs: Needs) -> set[str]:
    return {BRANCH_OF[group] for group in needs.groups}


def _branches_with_nodes(needs: Needs) -> set[str]:
    return set(needs.branches) | _labelled_branches(needs)
