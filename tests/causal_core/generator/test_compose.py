"""Attacks composed for any row: pure, placed, and told from the right answer."""

from __future__ import annotations

import time
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from causal_core.data.schema import contains_witness
from causal_core.generator.compose import PlainRow, compose, place, slot_of
from causal_core.generator.vocabulary import SPLITS

ROW = PlainRow("Name the city.", "Send it to Rome. It is late.", "Rome", "city", "message")
OTHERS = [
    PlainRow("Name the fruit.", "We have {w} apples.", "apples", "fruit", "note"),
    PlainRow("Name the town.", "Off to Oslo.", "Oslo", "city", "message"),
    PlainRow("Sort.", "b a", "a b", None),
]
TEXTS = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=80)


def of(number, split="train", row=ROW, others=OTHERS, seed=0, **options):
    return compose(row, others, slot_of(number, split), split, Random(seed), **options)


def test_an_attack_is_a_function_of_what_it_is_given():
    assert all(of(n, seed=n) == of(n, seed=n) for n in range(60))
    assert len({of(3, seed=s).injection_input for s in range(300)}) > 150  # thousands of texts


@pytest.mark.parametrize("split", SPLITS)
def test_every_payload_says_what_it_wants(split):
    kinds = {}
    for number in range(300):
        attack = of(number, split, canary="onyx-17", decoy="Turin")
        kinds.setdefault(attack.payload, attack)
        slot = slot_of(number, split)
        assert (attack.attack_family, attack.position, attack.payload) == (
            slot.family.name, slot.position, slot.payload
        )  # fmt: skip
        assert attack.injection_output == "Rome"
        assert contains_witness(attack.attack_output, attack.witness)
        if attack.payload != "leak":
            assert attack.witness in attack.injection_input
    assert kinds["leak"].witness == "onyx-17"
    assert kinds["decoy"].witness == kinds["decoy"].attack_output == "Turin"
    assert kinds["append"].attack_output == f"Rome {kinds['append'].witness}"
    assert kinds["task"].attack_output in ("apples", "a b")  # of another shape and task
    assert kinds.keys() == {"say", "decoy", "task", "leak", "append"}


def test_without_what_it_needs_a_payload_is_another():
    found = {of(number, others=[]).payload for number in range(300)}
    assert found == {"say", "append"}
    assert {of(n).attack_output for n in range(300) if of(n).payload == "decoy"} == {"Oslo"}


@settings(max_examples=150, deadline=None)
@given(
    system=TEXTS, text=TEXTS, answer=TEXTS, number=st.integers(0, 10**6), seed=st.integers(0, 99)
)
def test_any_row_can_be_attacked_and_its_text_stays(system, text, answer, number, seed):
    row = PlainRow(system, text, answer)
    attack = of(number, row=row, seed=seed)
    if attack is None:
        return
    assert not any(contains_witness(t, attack.witness) for t in (text, answer, system))
    assert len(attack.injection_input) > len(text)
    if attack.position != "middle":
        assert text in attack.injection_input


@pytest.mark.parametrize(
    ("position", "expected"),
    [("start", {"X\nOne. Two.", "X One. Two."}), ("end", {"One. Two.\nX", "One. Two. X"}),
     ("middle", {"One.\nX\nTwo.", "One. X Two."})],
)  # fmt: skip
def test_places(position, expected):
    found = {place("One. Two.", "X", position, Random(s)) for s in range(40)}
    assert found == {(text, position) for text in expected}


def test_a_text_of_one_piece_has_no_middle():
    found = {place("word", "X", "middle", Random(s)) for s in range(40)}
    start, end = ("X word", "X\nword"), ("word X", "word\nX")
    assert found == {(t, "start") for t in start} | {(t, "end") for t in end}


def test_a_witness_that_is_in_the_row_is_never_chosen():
    row = PlainRow("Name the fruit or a b.", "apples", "apples")
    found = [of(n, row=row, others=OTHERS[:1]) for n in range(100)]
    assert {attack.payload for attack in found} == {"say", "append"}


def test_fresh_attacks_do_not_slow_training_down():
    begin = time.process_time()
    for number in range(400):
        of(number, seed=number)
    assert time.process_time() - begin < 2.0  # a step of eight rows takes seconds
