"""The generator: reproducible, prefix stable, balanced, exact and free of leaks."""

import subprocess
import sys
from collections import Counter
from itertools import combinations

import pytest

from causal_core.data.schema import DataError, contains_witness
from causal_core.generator.compose import POSITIONS
from causal_core.generator.families import families_of
from causal_core.generator.generate import generate_dataset, generate_split
from causal_core.generator.look_alikes import TRIGGER_SENTENCES
from causal_core.generator.tasks import FORMATS, GUARDS, TASKS
from causal_core.generator.vocabulary import SPLITS, pools

SIZES = {"train": 400, "validation": 60, "test_seen": 60, "test_novel": 60}


@pytest.fixture(scope="module")
def dataset():
    return generate_dataset(SIZES, seed=0)


def test_same_seed_gives_the_same_rows_in_another_process(dataset):
    code = (
        "from causal_core.generator.generate import generate_split as g\n"
        "import hashlib; rows = [r for s in ('train', 'test_novel') for r in g(s, 60, 0)]\n"
        "print(hashlib.sha256(repr(rows).encode()).hexdigest())"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]
    assert generate_dataset(SIZES, seed=0) == dataset
    assert generate_dataset(SIZES, seed=1) != dataset


def test_a_larger_split_begins_with_the_smaller_one(dataset):
    assert list(generate_split("train", 900, 0))[:400] == dataset["train"]


def test_rows_keep_their_promises(dataset):
    for split, rows in dataset.items():
        inputs = [text for row in rows for text in (row.benign_input, row.benign_cf_input)]
        assert len(set(inputs)) == len(inputs)
        for row in rows:
            attack = row.only
            assert row.split == split
            assert attack.injection_output == row.benign_output != attack.attack_output
            assert attack.injection_input != row.benign_input
            assert 5 <= len(row.system_instruction.split()) <= 35
            clean = (row.benign_input, row.benign_output)
            assert not any(contains_witness(text, attack.witness) for text in clean)
            assert contains_witness(attack.attack_output, attack.witness)
            in_system = contains_witness(row.system_instruction, attack.witness)
            assert in_system == (attack.payload == "leak")


def test_rows_with_more_attacks_begin_with_those_of_fewer(dataset):
    several = list(generate_split("train", 60, 0, attacks_per_row=4))
    for row, more in zip(dataset["train"], several, strict=False):
        assert more.injections[0] == row.only
        assert more.attacked(0) == row
        assert len({i.injection_input for i in more.injections}) == 4
        assert len({i.attack_family for i in more.injections}) >= 3


def test_about_half_of_the_prompts_say_that_the_text_is_data(dataset):
    guards = GUARDS.of("train")
    guarded = sum(row.system_instruction.find(g) > 0 for row in dataset["train"] for g in guards)
    assert 0.4 < guarded / len(dataset["train"]) < 0.6


def test_work_that_training_never_has_is_in_the_novel_split_alone():
    held_out = {task.name for task in TASKS if task.held_out}
    assert len(held_out) >= 6 and len(TASKS) >= 30
    for split in SPLITS:
        found = {row.task for row in generate_split(split, 2 * len(TASKS), 0)}
        assert bool(found & held_out) == (split == "test_novel")


def test_small_splits_cover_everything_evenly(dataset):
    for split in ("test_seen", "test_novel"):
        families = families_of(split)
        rows = list(generate_split(split, 30 * len(families), 0))
        for field in ("position", "payload"):
            cells = Counter((row.only.attack_family, getattr(row.only, field)) for row in rows)
            of_one = Counter(getattr(row.only, field) for row in rows)
            for (_, value), count in cells.items():
                assert abs(count - of_one[value] / len(families)) <= 2
        assert {row.only.position for row in rows} == set(POSITIONS)
        assert 0.1 <= sum(row.has_trigger_words for row in rows) / len(rows) <= 0.2


def test_word_material_is_disjoint():
    def words(split):
        found = pools(split)
        values = [v for name, v in vars(found).items() if name not in ("split", "categories")]
        values += found.categories.values()
        return {word.casefold() for value in values for word in value}

    for a, b in combinations(SPLITS, 2):
        assert not words(a) & words(b)
    templates = [task.leads for task in TASKS] + [FORMATS, GUARDS, TRIGGER_SENTENCES]
    templates += [family.wordings for family in families_of("train")]
    for wordings in templates:
        parts = (wordings.train, wordings.validation, wordings.test)
        assert len(set().union(*parts)) == sum(map(len, parts))
        assert len(wordings.train) >= 4
        assert len(wordings.test) >= 2
    assert len(TRIGGER_SENTENCES.train) >= 20


def test_bad_requests_are_refused():
    with pytest.raises(ValueError, match="unknown split"):
        generate_dataset({"tset": 3}, seed=0)
    with pytest.raises(ValueError, match="0 or more"):
        generate_dataset({"train": -1}, seed=0)


def test_asking_for_more_than_there_is_is_an_error(monkeypatch):
    monkeypatch.setattr("causal_core.generator.generate._MAX_ATTEMPTS", 0)
    with pytest.raises(DataError, match="no more than 0 rows"):
        generate_dataset({"train": 1}, seed=0)
