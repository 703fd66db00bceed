"""What a tree of prompts and answers holds: positions, the last answer token, labels.

1. A node's position is its depth, from 0, in both layouts.
2. The last token of an answer is predicted, not read: it gets no node.
3. However triplets are packed, no micro-batch exceeds its budget, each triplet is in one of them,
   and its labels are its own.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from causal_core.tokens.triplet import InjectionTokens, TripletTokens
from causal_core.trees.needs import BRANCHES, ROBUST, TASK, Needs
from causal_core.trees.packing import FLAT, ROWS, Packing, RowCost, cut_micro_batches, tree_nodes
from causal_core.trees.prefix_tree import TreeRow, collate, collate_flat
from tests.tiny import random_triplets

NEEDS = Needs(BRANCHES, (TASK, ROBUST))


@pytest.fixture
def row():
    made = TreeRow()
    made.add_prompt([5, 6, 7])
    made.add_prompt([5, 8])
    made.add_continuation([5, 6, 7], [9, 10, 11], TASK, owner=0)
    return made


def test_positions_are_depths_from_zero(row):
    in_rows, flat = collate([row], (TASK,)), collate_flat(row, (TASK,))
    for batch in (in_rows, flat):
        found = dict(zip(batch.input_ids[0].tolist(), batch.position_ids[0].tolist(), strict=True))
        assert found == {5: 0, 6: 1, 7: 2, 8: 1, 9: 3, 10: 4}


def test_the_last_answer_token_is_a_target_and_no_node(row):
    assert 11 not in row.tree.tokens
    assert [target for _, target, _, _ in row.labels[TASK]] == [9, 10, 11]
    predicting = [row.tree.tokens[node] for node, *_ in row.labels[TASK]]
    assert predicting == [7, 9, 10]


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 9),
    seed=st.integers(0, 1000),
    room=st.integers(0, 150),
    packing=st.sampled_from([FLAT, ROWS, Packing(flat=False, row_cost=RowCost(quadratic=0.0))]),
)
def test_a_cut_keeps_to_its_budget_and_every_label_to_its_triplet(count, seed, room, packing):
    triplets = random_triplets(count, seed)
    budget = max(tree_nodes(triplet, NEEDS) for triplet in triplets) + room
    cut = cut_micro_batches(triplets, NEEDS, budget, packing)
    assert sorted(owner for micro in cut for owner in micro.owners) == list(range(count))
    labels: Counter = Counter()
    for micro in cut:
        assert micro.batch.input_ids.numel() <= budget
        for chunk in micro.batch.labels:
            for name, group in chunk.groups.items():
                owned = zip(group.owner.tolist(), group.target.tolist(), strict=True)
                labels.update((name, owner, target) for owner, target in owned)
    expected: Counter = Counter()
    for owner, triplet in enumerate(triplets):
        expected.update((TASK, owner, token) for token in triplet.benign_answer)
        expected.update((ROBUST, owner, token) for token in triplet.only.answer)
    assert labels == expected


def test_an_attack_shared_with_an_earlier_micro_batch_does_not_break_the_budget():
    """What the third triplet adds is little beside the first one, and much without it."""
    shared, other = [50] * 20, [60] * 12
    triplets = [
        TripletTokens(
            id=f"t{number}", system=[1], benign=[10 + number], counterfactual=[10 + number, 2],
            benign_answer=[3], injections=(InjectionTokens(attack, [3], [], []),),
        )
        for number, attack in enumerate((shared, other, shared))
    ]  # fmt: skip
    sizes = [m.batch.input_ids.numel() for m in cut_micro_batches(triplets, NEEDS, 30, FLAT)]
    assert sizes == [23, 15, 23]


def test_pooling_weights_are_a_mean_over_the_prompt(row):
    for batch in (collate([row], (TASK,)), collate_flat(row, (TASK,))):
        torch.testing.assert_close(batch.pool_weights.sum(-1), torch.ones(1, 2))
