"""The interval mask of a flat tree, and the squares of it that a kernel computes.

1. A query may attend to a key by the interval exactly where the key is an ancestor or itself.
2. No allowed score lies outside of the squares, and no other lies in a full one; by rows of queries
   and by columns of keys they are the same squares. With a window, too.
3. Padding attends to itself alone, and what is padded is less than a bucket (or up to two).
"""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from causal_core.trees.blocks import depths_of
from causal_core.trees.intervals import BUCKET, TreeIntervals, padded_size, subtree_ends
from causal_core.trees.packing import INTERVALS, cut_micro_batches
from tests.causal_core.trees.test_blocks import SEQUENCES, ancestors, flat_parents
from tests.causal_core.trees.test_staging import LOSS, needs_of
from tests.tiny import random_triplets


def random_parents(nodes, seed, fork):
    """A forest in depth-first order: a node hangs on the one before or, by chance, further up."""
    rng, parents = random.Random(seed), [-1]
    for node in range(1, nodes):
        parent = node - 1
        while parent >= 0 and rng.random() < fork:
            parent = parents[parent]
        parents.append(parent)
    return parents


def allowed_by(end):
    at = np.arange(len(end))
    return (at[None] <= at[:, None]) & (at[:, None] < end[None])


def dense(count, index):
    """[C, C] bool of a table of squares."""
    count, index = count[0, 0].numpy(), index[0, 0].numpy()
    table = np.zeros(index.shape, dtype=bool)
    for row, (number, columns) in enumerate(zip(count, index, strict=True)):
        assert sorted(columns) == list(range(len(columns)))
        table[row, columns[:number]] = True
    return table


@settings(max_examples=150, deadline=None)
@given(sequences=SEQUENCES)
def test_the_interval_allows_exactly_the_ancestors(sequences):
    parents = flat_parents(sequences)
    np.testing.assert_array_equal(allowed_by(subtree_ends(parents)), ancestors(parents))


@settings(max_examples=40, deadline=None)
@given(
    buckets=st.integers(1, 6),
    seed=st.integers(0, 10_000),
    fork=st.sampled_from([0.0, 0.01, 0.1, 0.5]),
    window=st.sampled_from([None, 1, 5, 130, 10_000]),
)
def test_squares_hold_what_is_allowed_and_full_ones_nothing_else(buckets, seed, fork, window):
    parents = random_parents(buckets * BUCKET, seed, fork)
    tree, depth = TreeIntervals.of(parents), depths_of(parents)
    allowed = ancestors(parents)
    if window is not None:
        allowed &= depth[:, None] - depth[None] < window
    squares = tree.within(window)
    mixed = dense(squares.mixed_count, squares.mixed)
    full = dense(squares.full_count, squares.full)
    assert not (mixed & full).any()
    cut = allowed.reshape(buckets, BUCKET, buckets, BUCKET)
    some, every = cut.any(axis=(1, 3)), cut.all(axis=(1, 3))
    np.testing.assert_array_equal(full, every)
    assert (mixed | full)[some].all()
    if window is None:
        np.testing.assert_array_equal(mixed | full, some)
    by_key = (
        dense(squares.mixed_count_by_key, squares.mixed_by_key),
        dense(squares.full_count_by_key, squares.full_by_key),
    )
    np.testing.assert_array_equal(by_key[0].T, mixed)
    np.testing.assert_array_equal(by_key[1].T, full)


def test_a_square_that_a_subtree_ends_in_is_not_full():
    """A chain to the middle of the second bucket, and another that hangs on its first bucket."""
    parents = list(range(-1, 2 * BUCKET - 1))
    parents[3 * BUCKET // 2] = BUCKET - 1
    tree = TreeIntervals.of(parents).squares
    assert dense(tree.full_count, tree.full)[1, 0]  # all of the first bucket are ancestors
    parents[3 * BUCKET // 2] = BUCKET - 2
    tree = TreeIntervals.of(parents).squares
    assert not dense(tree.full_count, tree.full).any()
    assert dense(tree.mixed_count, tree.mixed)[1, 0]


def test_a_window_leaves_squares_out():
    chain = TreeIntervals.of(list(range(-1, 8 * BUCKET - 1)))
    whole, near = chain.within(None), chain.within(BUCKET)
    assert int(whole.mixed_count.sum() + whole.full_count.sum()) == 36
    assert int(near.mixed_count.sum() + near.full_count.sum()) == 15
    assert chain.within(8 * BUCKET) is chain.within(None) is chain.squares


@pytest.mark.parametrize("budget", [150, 10_000])
def test_padding_sees_itself_and_fills_whole_buckets(budget):
    triplets = random_triplets(12, seed=1)
    for micro in cut_micro_batches(triplets, needs_of(LOSS), budget, INTERVALS):
        batch = micro.batch
        size = batch.input_ids.numel()
        assert size == padded_size(batch.nodes) < max(batch.nodes + BUCKET, 2 * BUCKET + 1)
        assert batch.charged == batch.nodes <= budget and batch.flat
        end = batch.intervals.end.numpy()
        np.testing.assert_array_equal(end[batch.nodes :], np.arange(batch.nodes, len(end)) + 1)
        assert end[: batch.nodes].max() <= batch.nodes  # no node's subtree reaches into it
        assert not batch.pool_weights[..., batch.nodes :].any()
        assert batch.label_index.max() < batch.nodes
