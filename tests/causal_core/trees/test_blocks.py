"""The cut of tree attention into blocks: complete, exact in what it allows, and cheap.

1. Whatever the price of a call, blocks partition the queries, and each query may attend to exactly
   its ancestors and itself; with a window, to the last ones of that path.
2. A free call computes (almost) no wasted score; an expensive one makes a single block.
3. Depth-first order keeps parents before children and every subtree contiguous.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from causal_core.trees.blocks import TreeRows, depth_first_order, plan_blocks
from causal_core.trees.prefix_tree import PrefixTree

SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=12)


def flat_parents(sequences):
    """Parents of the trie of `sequences` in depth-first order."""
    tree = PrefixTree()
    for sequence in sequences:
        tree.add(sequence)
    order = depth_first_order(tree.parents)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return [int(rank[p]) if (p := tree.parents[node]) >= 0 else -1 for node in order]


def ancestors(parents):
    """[N, N] bool by walking up from every node."""
    allowed = np.zeros((len(parents), len(parents)), dtype=bool)
    for node in range(len(parents)):
        at = node
        while at >= 0:
            allowed[node, at] = True
            at = parents[at]
    return allowed


def allowed_by(blocks, size):
    """[N, N] bool that the blocks allow, and how often each query is computed."""
    allowed, computed = np.zeros((size, size), dtype=bool), np.zeros(size, dtype=int)
    for block in blocks:
        queries = np.arange(block.start, block.stop)
        keys = np.concatenate([np.arange(*r) for r in block.keys])
        inside = block.allowed if block.allowed is not None else keys[None] <= queries[:, None]
        allowed[np.ix_(queries, keys)] = inside
        computed[queries] += 1
    return allowed, computed


@settings(max_examples=150, deadline=None)
@given(sequences=SEQUENCES, call_cost=st.sampled_from([0.0, 1.0, 20.0, 300.0, 1e9]))
def test_blocks_allow_exactly_the_ancestors(sequences, call_cost):
    parents = flat_parents(sequences)
    blocks = plan_blocks(parents, call_cost).blocks
    allowed, computed = allowed_by(blocks, len(parents))
    np.testing.assert_array_equal(computed, 1)
    np.testing.assert_array_equal(allowed, ancestors(parents))


@settings(max_examples=150, deadline=None)
@given(
    sequences=SEQUENCES,
    call_cost=st.sampled_from([0.0, 20.0, 1e9]),
    window=st.integers(1, 13),
)
def test_a_window_counts_the_nodes_of_the_path(sequences, call_cost, window):
    parents = flat_parents(sequences)
    tree = plan_blocks(parents, call_cost)
    above = ancestors(parents)
    depth = above.sum(1) - 1
    near = depth[:, None] - depth[None, :] < window
    allowed, computed = allowed_by(tree.within(window), len(parents))
    np.testing.assert_array_equal(computed, 1)
    np.testing.assert_array_equal(allowed, above & near)
    rows = TreeRows(torch.from_numpy(above)[None, None], torch.from_numpy(depth)[None])
    np.testing.assert_array_equal(rows.within(window)[0, 0].numpy(), above & near)


def test_keys_that_no_query_of_a_block_reaches_are_not_touched():
    trunk = list(range(100))
    tree = plan_blocks(flat_parents([trunk + [1000 + b] * 50 for b in range(3)]), 0.0)
    assert sum(b.scores() for b in tree.within(10)) < sum(b.scores() for b in tree.blocks)
    assert [b.keys[0][0] for b in tree.within(10)] == [0, 91, 91, 91]
    assert tree.within(1000) is tree.blocks


@settings(max_examples=60, deadline=None)
@given(sequences=SEQUENCES)
def test_depth_first_order_keeps_subtrees_contiguous(sequences):
    parents = flat_parents(sequences)
    below = ancestors(parents)
    for node in range(len(parents)):
        assert parents[node] < node
        subtree = np.flatnonzero(below[:, node])
        np.testing.assert_array_equal(subtree, np.arange(node, node + len(subtree)))


def test_children_come_in_the_order_of_their_creation():
    assert depth_first_order([-1, 0, 0, 1, -1]).tolist() == [0, 1, 3, 2, 4]


@settings(max_examples=60, deadline=None)
@given(sequences=SEQUENCES)
def test_a_higher_price_of_a_call_never_makes_more_calls(sequences):
    parents = flat_parents(sequences)
    plans = [plan_blocks(parents, cost).blocks for cost in (0.0, 10.0, 100.0, 1e9)]
    counts = [len(plan) for plan in plans]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 1
    scores = [sum(block.scores() for block in plan) for plan in plans]
    assert scores[0] == min(scores)


def test_long_branches_are_cut_apart_and_short_ones_are_not():
    trunk = list(range(100))
    long = plan_blocks(flat_parents([trunk + [1000 + b] * 200 for b in range(3)]), 1000.0)
    assert [b.stop - b.start for b in long.blocks] == [100, 200, 200, 200]
    short = plan_blocks(flat_parents([[*trunk, 1000 + b] for b in range(3)]), 1000.0)
    assert len(short.blocks) <= 2


def test_a_single_chain_is_causal_without_a_mask():
    (block,) = plan_blocks([-1, 0, 1, 2]).blocks
    assert block.allowed is None
    assert block.scores() == pytest.approx(10)
