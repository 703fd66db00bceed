"""From tokenised triplets to tree rows and micro-batches under a token budget.

Which triplets form a global batch is decided elsewhere (`tokens/batches.py`); here they are only
cut: triplets with the same S may share a row, rows of similar length share a micro-batch. By
invariant I2 no such choice changes the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from causal_core.errors import UserError
from causal_core.tokens.triplet import TripletTokens
from causal_core.trees.blocks import DEFAULT_CALL_COST
from causal_core.trees.needs import (
    ATTACK,
    BENIGN,
    BRANCH_OF,
    COUNTERFACTUAL,
    INJECTION,
    ROBUST,
    SHARED_ATTACKED,
    SHARED_CLEAN,
    TASK,
    WITNESS_ATTACKED,
    WITNESS_CLEAN,
    Needs,
)
from causal_core.trees.prefix_tree import TreeBatch, TreeRow, collate, collate_flat

# A row joins a micro-batch only if it fills at least this part of the longest row's width:
# computing padding costs more than one more forward.
MIN_FILL = 0.75


@dataclass(frozen=True)
class RowCost:
    """Relative cost of a row of N nodes: `linear * N + quadratic * N^2`.

    A long row computes shared prefixes once but makes every node attend (masked) to the whole
    row; the two coefficients decide when triplets with the same S are better off in one row.
    """

    linear: float = 1.0
    quadratic: float = 1.0 / 4096

    def __call__(self, nodes: int) -> float:
        return self.linear * nodes + self.quadratic * nodes * nodes


@dataclass(frozen=True)
class Packing:
    """How the nodes of a micro-batch are laid out; no choice changes the gradient (I2).

    Rows: trees padded to the longest of a micro-batch, attention under one dense mask a row: any
    GPU has kernels for it. Flat: one tree in one sequence, where all that triplets share is
    computed once; attention in blocks (`trees/blocks.py`), without padding, where a kernel's launch
    costs little, or in one kernel under an interval mask (`trees/intervals.py`), which a GPU wants.
    """

    flat: bool
    intervals: bool = False  # of a flat layout
    row_cost: RowCost = RowCost()
    call_cost: float = DEFAULT_CALL_COST  # of a block, see `plan_blocks`


ROWS = Packing(flat=False)
FLAT = Packing(flat=True)
INTERVALS = Packing(flat=True, intervals=True)


def preferred_packing(device: torch.device) -> Packing:
    """The layout that is fast on a device, where its kernels take the model."""
    return FLAT if device.type == "cpu" else INTERVALS


def add_triplet(row: TreeRow, triplet: TripletTokens, needs: Needs, owner: int) -> None:
    """Adds the prompts and continuations of a triplet that `needs` asks for."""
    benign = [*triplet.system, *triplet.benign]
    attacked = [[*triplet.system, *injection.prompt] for injection in triplet.injections]
    pooled = {
        BENIGN: [benign],
        COUNTERFACTUAL: (
            [[*triplet.system, *triplet.counterfactual]] if triplet.counterfactual else []
        ),
        INJECTION: attacked,
    }
    row.owners.append(owner)
    sequences: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()
    for branch in needs.branches:
        for prompt in pooled[branch]:
            row.add_prompt(prompt, branch)
            sequences.add((tuple(prompt), ()))
    for group in needs.groups:
        for number, answer in enumerate(_ANSWERS[group](triplet)):
            prompt = benign if BRANCH_OF[group] == BENIGN else attacked[number]
            row.add_continuation(prompt, answer, group, owner, number)
            sequences.add((tuple(prompt), tuple(answer[:-1])))
    continued = {prompt for prompt, answer in sequences if answer}
    row.path_tokens += sum(
        len(prompt) + len(answer)
        for prompt, answer in sequences
        # A prompt alone costs nothing where one of its continuations is computed anyway.
        if answer or prompt not in continued
    )


# What each group predicts: for every injection, or once after U.
_ANSWERS: dict[str, Callable[[TripletTokens], list[list[int]]]] = {
    TASK: lambda triplet: [triplet.benign_answer],
    SHARED_CLEAN: lambda triplet: [triplet.shared_answer(i) for i in triplet.injections],
    SHARED_ATTACKED: lambda triplet: [triplet.shared_answer(i) for i in triplet.injections],
    ROBUST: lambda triplet: [i.answer for i in triplet.injections],
    ATTACK: lambda triplet: [i.attack_answer for i in triplet.injections],
    WITNESS_CLEAN: lambda triplet: [i.witness for i in triplet.injections],
    WITNESS_ATTACKED: lambda triplet: [i.witness for i in triplet.injections],
}


def predictions(triplet: TripletTokens, group: str) -> int:
    """How many labels of a group the triplet has."""
    return sum(len(answer) for answer in _ANSWERS[group](triplet))


def tree_nodes(triplet: TripletTokens, needs: Needs) -> int:
    """Nodes of the triplet's own tree."""
    row = TreeRow()
    add_triplet(row, triplet, needs, owner=0)
    return len(row.tree)


def too_large(triplet: str, nodes: int, budget: int) -> UserError:
    """The error for a triplet whose own tree has more nodes than a micro-batch may have."""
    return UserError(
        f"triplet {triplet!r} needs {nodes} tree nodes, more than "
        f"train.micro_batch_tokens={budget}: raise it to at least {nodes}, or lower "
        "data.max_length with data.overlong=drop"
    )


def build_rows(
    triplets: Sequence[TripletTokens], needs: Needs, budget: int, cost: RowCost
) -> list[TreeRow]:
    """Cuts triplets into rows: one tree a triplet, merged where sharing S pays by `cost`.

    Owners are the triplets' positions in `triplets`.

    Raises:
        UserError: the tree of a single triplet is larger than `budget` nodes.
    """
    by_system: dict[tuple[int, ...], list[int]] = {}
    for index, triplet in enumerate(triplets):
        by_system.setdefault(tuple(triplet.system), []).append(index)
    rows: list[TreeRow] = []
    for system, members in by_system.items():
        current: list[int] = []
        current_nodes = 0
        for index in members:
            nodes = _checked_nodes(triplets[index], needs, budget)
            merged = current_nodes + nodes - len(system)
            pays = cost(merged) < cost(current_nodes) + cost(nodes)
            if current and merged <= budget and pays:
                current.append(index)
                current_nodes = merged
            else:
                if current:
                    rows.append(_row(current, triplets, needs))
                current, current_nodes = [index], nodes
        rows.append(_row(current, triplets, needs))
    return rows


def _row(members: Iterable[int], triplets: Sequence[TripletTokens], needs: Needs) -> TreeRow:
    row = TreeRow()
    for index in members:
        add_triplet(row, triplets[index], needs, owner=index)
    return row


@dataclass
class MicroBatch:
    """A collated micro-batch and the positions of its triplets in the list it was cut from."""

    batch: TreeBatch
    owners: list[int]


def cut_micro_batches(
    triplets: Sequence[TripletTokens],
    needs: Needs,
    budget: int,
    packing: Packing = ROWS,
) -> list[MicroBatch]:
    """Cuts triplets into micro-batches of at most `budget` nodes (see `TreeBatch.charged`).

    Pooled branches of a micro-batch follow the order of its `owners`, which are positions in
    `triplets`.

    Raises:
        UserError: the tree of a single triplet is larger than `budget` nodes.
    """
    return (_cut_flat if packing.flat else _cut_rows)(triplets, needs, budget, packing)


def _cut_rows(
    triplets: Sequence[TripletTokens], needs: Needs, budget: int, packing: Packing
) -> list[MicroBatch]:
    """Rows of trees, sorted by length so that padding is small."""
    rows = build_rows(triplets, needs, budget, packing.row_cost)
    rows.sort(key=lambda row: -len(row.tree))
    micro_batches: list[MicroBatch] = []
    start = 0
    while start < len(rows):
        width = len(rows[start].tree)
        chosen = [
            row
            for row in rows[start : start + max(1, budget // width)]
            if len(row.tree) >= MIN_FILL * width
        ]
        owners = [owner for row in chosen for owner in row.owners]
        micro_batches.append(MicroBatch(collate(chosen, needs.groups), owners))
        start += len(chosen)
    return micro_batches


def _cut_flat(
    triplets: Sequence[TripletTokens], needs: Needs, budget: int, packing: Packing
) -> list[MicroBatch]:
    """One tree a micro-batch; triplets with common prefixes together, trees of similar size."""
    members = sorted(
        range(len(triplets)), key=lambda i: (triplets[i].system, triplets[i].benign, i)
    )
    alone = [_checked_nodes(triplets[i], needs, budget) for i in members]
    together, added = TreeRow(), []  # how many nodes each adds to those before it
    for index in members:
        before = len(together.tree)
        add_triplet(together, triplets[index], needs, owner=index)
        added.append(len(together.tree) - before)
    limit = _even_limit(alone, added, budget)
    micro_batches: list[MicroBatch] = []

    def close(chosen: list[int]) -> None:
        row = _row(chosen, triplets, needs)
        batch = collate_flat(row, needs.groups, packing.call_cost, packing.intervals)
        micro_batches.append(MicroBatch(batch, chosen))

    current, size, row = [members[0]], alone[0], _row(members[:1], triplets, needs)
    for index, nodes, more in zip(members[1:], alone[1:], added[1:], strict=True):
        fits = size + more <= limit
        if fits:
            add_triplet(row, triplets[index], needs, owner=index)
        if fits and len(row.tree) <= budget:
            current.append(index)
            size += more
        else:
            close(current)
            current, size, row = [index], nodes, _row([index], triplets, needs)
    close(current)
    return micro_batches


def _checked_nodes(triplet: TripletTokens, needs: Needs, budget: int) -> int:
    nodes = tree_nodes(triplet, needs)
    if nodes > budget:
        raise too_large(triplet.id, nodes, budget)
    return nodes


def _even_limit(alone: Sequence[int], added: Sequence[int], budget: int) -> int:
    """The smallest limit that needs no more micro-batches than `budget` does: even sizes.

    Args:
        alone: Nodes of each triplet's own tree, in order.
        added: Nodes that each adds to a micro-batch that holds its predecessor.
    """

    def bins(limit: int) -> int:
        count, size = 0, limit + 1
        for nodes, more in zip(alone, added, strict=True):
            if size + more <= limit:
                size += more
            else:
                count, size = count + 1, nodes
        return count

    fewest = bins(budget)
    low, high = max(alone), budget
    while low < high:
        middle = (low + high) // 2
        if bins(middle) <= fewest:
            high = middle
        else:
            low = middle + 1
    return low


def with_cost(packing: Packing, cost: float) -> Packing:
    """A layout with the cost that was measured for its device."""
    if packing.flat:
        return replace(packing, call_cost=cost)
    return replace(packing, row_cost=RowCost(quadratic=cost))
