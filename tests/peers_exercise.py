"""Rows, a base and the comparison that the tests of `benchmarks.peers` share."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.peers.contender import Contender, Measured
from benchmarks.peers.models import difference
from causal_core.tokens.triplet import InjectionTokens, TripletTokens
from tests.tiny import random_triplets, tiny_base
from tests.tiny_run import tiny_tokenizer

VOCABULARY = 259  # of the tiny tokenizer
# In float64 both sides sum the same products in another order.
EXACT = 1e-10


def base():
    """A base in float64."""
    return tiny_base(vocabulary=VOCABULARY).double()


def rows(count: int = 4, injections: int = 2) -> list[TripletTokens]:
    """Random triplets as texts: letters alone, and answers that end."""
    tokenizer = tiny_tokenizer()
    letters = [tokenizer.convert_tokens_to_ids(letter) for letter in "abcdefghijklmnopqrstuvwxyz"]
    end = tokenizer.eos_token_id

    def text(ids: list[int]) -> list[int]:
        return [letters[i % len(letters)] for i in ids]

    def answer(ids: list[int]) -> list[int]:
        return [*text(ids), end]

    return [
        replace(
            row,
            system=text(row.system),
            benign=text(row.benign),
            benign_answer=answer(row.benign_answer),
            injections=tuple(
                InjectionTokens(
                    text(i.prompt), answer(i.answer), [], answer(i.attack_answer or [7])
                )
                for i in row.injections
            ),
        )
        for row in random_triplets(count, seed=3, injections=(injections, injections))
    ]


def same(peer: Contender, ours_found: Measured, bound: float) -> None:
    """The peer's loss and gradient are ours, and stay so when it runs again."""
    found = peer.run(closely=True)
    assert found.loss == pytest.approx(ours_found.loss, rel=1e-6)  # trainers report in float32
    assert difference(found.gradient, ours_found.gradient) < bound
    assert found.peak_bytes > 0 and found.seconds > 0
    again = peer.run()
    assert again.loss == pytest.approx(found.loss, rel=1e-6) and again.gradient is None
