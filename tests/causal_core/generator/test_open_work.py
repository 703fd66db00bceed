"""Open work: rows for a model to answer itself, of the training split's words alone."""

from __future__ import annotations

import pytest

from causal_core.data.leaks import check_leaks
from causal_core.data.schema import DataError
from causal_core.generator import open_work
from causal_core.generator.generate import generate_split
from causal_core.generator.inject import inject
from causal_core.generator.open_work import open_rows


def test_a_larger_set_begins_with_the_smaller_one_and_has_no_row_twice():
    rows = list(open_rows(400, 3))
    assert list(open_rows(100, 3)) == rows[:100]
    assert list(open_rows(100, 4)) != rows[:100]
    assert len({(row.system_instruction, row.benign_input) for row in rows}) == 400


def test_rows_have_no_answer_and_no_attack():
    rows = list(open_rows(200, 0))
    assert not any(row.benign_output or row.injections or row.benign_cf_input for row in rows)
    assert {row.task for row in rows} == {open_work.OPEN_TASK}
    assert len({row.system_instruction for row in rows}) == 30


def test_with_answers_and_attacks_it_shares_nothing_with_the_test_splits():
    answered = [
        row.attacked(None).__class__(**{**vars(row), "benign_output": f"Answer {number}."})
        for number, row in enumerate(open_rows(300, 0))
    ]
    made = inject(answered, validation=0.03, test=0.06, seed=0, by_prompt=False)
    tests = [row for split in ("test_seen", "test_novel") for row in generate_split(split, 150, 0)]
    assert check_leaks({"train": made.splits["train"], "test": tests}).ok


def test_more_than_its_words_can_make_is_refused(monkeypatch):
    monkeypatch.setattr(open_work, "_question", lambda rng: ("S", rng.choice("abc")))
    monkeypatch.setattr(open_work, "_about_a_text", open_work._question)
    with pytest.raises(DataError, match="no more than 3 rows of open work"):
        list(open_rows(4, 0))
