"""The kinds of work: answers that code can check, inputs that differ, decoys that are wrong."""

from __future__ import annotations

from random import Random

import pytest

from causal_core.generator.tasks import TASKS, instruction
from causal_core.generator.vocabulary import SPLITS, pools
from tests.causal_core.generator.right_answers import RIGHT

COPIED = {"capitals", "joined", "card_line", "swapped_name"}  # put together, not copied
COUNTED = {"count", "table_rows"}
LABELLED = {"ticket_topic", "sentiment", "category", "in_stock", "request_or_statement"}


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_a_task_keeps_its_promises(task):
    assert sum(other.name == task.name for other in TASKS) == 1
    for split in SPLITS:
        words, texts = pools(split), set()
        for number in range(60):
            rng = Random(number)
            key = rng.choice(task.keys)
            sample = task.draw(rng, words, key)
            system, request = instruction(task, key, split, rng)
            assert system.startswith(request) and request.endswith((".", "nothing else."))
            texts.add(sample.text)
            assert sample.answer.strip() == sample.answer != ""
            assert len(sample.text.split()) <= 120
            decoy = task.decoy(rng, words, key)
            assert decoy.strip() == decoy != ""
            if task.name not in COPIED | COUNTED | LABELLED:
                assert sample.answer in sample.text
        assert len(texts) >= (15 if task.name == "category" else 25)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_answers_are_what_a_second_look_at_the_text_finds(task):
    for split in SPLITS:
        for number in range(40):
            rng = Random(number)
            key = rng.choice(task.keys)
            sample = task.draw(rng, pools(split), key)
            assert RIGHT[task.name](sample.text, key) == sample.answer, sample.text


def test_a_second_look_is_taken_at_every_kind_of_work():
    assert RIGHT.keys() == {task.name for task in TASKS}
