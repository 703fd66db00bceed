"""The generator: reproducible, prefix stable, balanced, exact and free of leaks."""

import subprocess
import sys
from collections import Counter
from itertools import combinations

import pytest

from causal_core.data.schema import DataError, contains_witness
from causal_core.generator.attacks import FAMILIES, NOVEL_FAMILIES, POSITIONS, SEEN_FAMILIES
from causal_core.generator.generate import generate_dataset, generate_split
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
            assert row.split == split
            assert row.only.injection_output == row.benign_output
            assert row.only.injection_input != row.benign_input
            assert 12 <= len(row.system_instruction.split()) <= 29
            clean = (row.benign_input, row.benign_cf_input, row.benign_output)
            assert not any(contains_witness(text, row.only.witness) for text in clean)
            in_system = contains_witness(row.system_instruction, row.only.witness)
            assert in_system == (row.only.attack_family == "prompt_leaking")


def test_small_splits_cover_everything_evenly(dataset):
    for split, families in (("test_seen", SEEN_FAMILIES), ("test_novel", NOVEL_FAMILIES)):
        rows = dataset[split]
        cells = Counter((row.only.attack_family, row.only.position) for row in rows)
        assert set(cells) == {(name, place) for name in families for place in POSITIONS}
        assert max(cells.values()) - min(cells.values()) <= 1
        assert {row.task for row in rows} == {task.name for task in TASKS}
        assert 0.1 <= sum(row.has_trigger_words for row in rows) / len(rows) <= 0.2
    assert not set(SEEN_FAMILIES) & set(NOVEL_FAMILIES)
    assert set(SEEN_FAMILIES) | set(NOVEL_FAMILIES) == set(FAMILIES)


def test_word_material_is_disjoint():
    def words(split):
        found = pools(split)
        values = [v for name, v in vars(found).items() if name not in ("split", "categories")]
        values += found.categories.values()
        return {word.casefold() for value in values for word in value}

    for a, b in combinations(SPLITS, 2):
        assert not words(a) & words(b)
    templates = [task.leads for task in TASKS] + [FORMATS, GUARDS]
    templates += [FAMILIES[name].wordings for name in SEEN_FAMILIES]
    for wordings in templates:
        parts = (wordings.train, wordings.validation, wordings.test)
        assert len(set().union(*parts)) == sum(map(len, parts))
        assert len(wordings.train) >= 5
        assert len(wordings.test) >= 2
    assert all(len(task.leads.train) >= 8 for task in TASKS)
    assert all(len(FAMILIES[name].wordings.test) >= 6 for name in NOVEL_FAMILIES)


def test_bad_requests_are_refused():
    with pytest.raises(ValueError, match="unknown split"):
        generate_dataset({"tset": 3}, seed=0)
    with pytest.raises(ValueError, match="0 or more"):
        generate_dataset({"train": -1}, seed=0)


def test_asking_for_more_than_there_is_is_an_error(monkeypatch):
    monkeypatch.setattr("causal_core.generator.generate._MAX_ATTEMPTS", 0)
    with pytest.raises(DataError, match="no more than 0 rows"):
        generate_dataset({"train": 1}, seed=0)
