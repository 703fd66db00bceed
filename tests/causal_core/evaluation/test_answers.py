"""How near an answer is to the expected one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from causal_core.evaluation.answers import contains, word_f1

WORDS = st.lists(st.sampled_from(["oslo", "rome", "is", "cold", "1006"]), max_size=6).map(" ".join)


@pytest.mark.parametrize(
    ("answer", "expected", "f1", "there"),
    [
        ("Rome", "Rome", 1.0, True),
        ("The city is Rome.", "Rome", 0.4, True),
        ("the city is ROME!", "rome", 0.4, True),
        ("Oslo", "Rome", 0.0, False),
        ("", "Rome", 0.0, False),
        ("Rome Rome", "Rome", 2 / 3, True),
        ("1006.5", "1006", 0.0, False),
        ("...", "!", 1.0, False),
    ],
)
def test_known_values(answer, expected, f1, there):
    assert word_f1(answer, expected) == pytest.approx(f1)
    assert contains(answer, expected) is there


@given(WORDS, WORDS)
def test_f1_is_symmetric_within_its_range_and_1_for_the_same_words(one, two):
    assert word_f1(one, two) == word_f1(two, one)
    assert 0.0 <= word_f1(one, two) <= 1.0
    assert word_f1(one, " ".join(reversed(one.split()))) == 1.0
