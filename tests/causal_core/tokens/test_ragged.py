"""Many sequences in one array do what lists of them do."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from causal_core.tokens.ragged import Ragged

sequences = st.lists(st.lists(st.integers(0, 3), max_size=5), max_size=6)


@st.composite
def pairs(draw):
    """As many sequences as others."""
    one = draw(sequences)
    lists = st.lists(st.integers(0, 3), max_size=5)
    return one, draw(st.lists(lists, min_size=len(one), max_size=len(one)))


@settings(deadline=None)
@given(sequences, sequences)
def test_sequences_come_out_as_they_went_in(one, two):
    assert Ragged.of(one).lists() == one
    assert Ragged.joined([Ragged.of(one), Ragged.of(two)]).lists() == one + two
    assert Ragged.of(one).to_arrow().to_pylist() == one


@settings(deadline=None)
@given(sequences, st.data())
def test_chosen_sequences_and_parts_of_them(one, data):
    chosen = data.draw(st.lists(st.integers(0, len(one) - 1), max_size=9)) if one else []
    first = [data.draw(st.integers(0, len(one[index]))) for index in chosen]
    lengths = [
        data.draw(st.integers(0, len(one[index]) - start))
        for index, start in zip(chosen, first, strict=True)
    ]
    ragged, where = Ragged.of(one), np.array(chosen, np.int64)
    starts, counts = np.array(first, np.int64), np.array(lengths, np.int64)
    cut = list(zip(chosen, first, lengths, strict=True))
    assert ragged.take(where).lists() == [one[index] for index in chosen]
    assert ragged.take(where, first=starts).lists() == [one[index][at:] for index, at, _ in cut]
    assert ragged.take(where, starts, counts).lists() == [one[i][at : at + n] for i, at, n in cut]


@settings(deadline=None)
@given(pairs())
def test_side_by_side_and_what_they_share(both):
    one, two = both
    left, right = Ragged.of(one), Ragged.of(two)
    assert left.beside(right).lists() == [a + b for a, b in zip(one, two, strict=True)]
    shared = [
        next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        for a, b in zip(one, two, strict=True)
    ]
    assert left.shared_with(right).tolist() == shared
