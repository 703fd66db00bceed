"""The kinds of work: answers that code can check, inputs that differ, decoys that are wrong."""

from __future__ import annotations

from random import Random

import pytest

from causal_core.generator.tasks import TASKS, instruction
from causal_core.generator.vocabulary import SPLITS, pools

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


def sample_of(name, seed):
    task = next(task for task in TASKS if task.name == name)
    rng = Random(seed)
    return task.draw(rng, pools("train"), rng.choice(task.keys))


@pytest.mark.parametrize("seed", range(20))
def test_answers_are_what_a_second_look_finds(seed):
    lines = sample_of("table_rows", seed).segments
    assert sample_of("table_rows", seed).answer == str(len(lines) - 1)
    *rows, asked = sample_of("table_city", seed).segments[1:]
    name = asked.removeprefix("Asked for: ")
    (row,) = [row for row in rows if row.startswith(f"{name} |")]
    assert row.split(" | ")[1] == sample_of("table_city", seed).answer
    _, *prices, total = sample_of("receipt_total", seed).segments
    assert float(total.split()[-1]) == sum(float(p.split()[-1]) for p in prices)
    (error,) = [line for line in sample_of("error_code", seed).segments if "ERROR" in line]
    assert error.endswith(sample_of("error_code", seed).answer)
    assert (
        f" {sample_of('failed_service', seed).answer} failed"
        in sample_of("failed_service", seed).text
    )
    first, second = (line.split(": ")[1] for line in sample_of("joined", seed).segments[:2])
    assert sample_of("joined", seed).answer == f"{first} and {second}"
    quoted = sample_of("quoted_request", seed)
    assert f'"{quoted.answer}"' in quoted.text
    asks = sample_of("who_asks", seed)
    (line,) = [line for line in asks.segments if not line.split(": ")[1].startswith(('"The', '"A'))]
    assert line.startswith(f"{asks.answer}:")
