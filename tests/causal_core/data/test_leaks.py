"""The leak check finds each kind of planted leak and nothing else."""

from dataclasses import replace

import pytest

from causal_core.data.leaks import LeakKind, check_leaks, injected_text
from causal_core.data.schema import INJECTION_FIELDS
from causal_core.data.writer import to_table
from causal_core.generator.generate import generate_dataset

SIZES = {"train": 60, "validation": 20, "test_seen": 36, "test_novel": 36}


@pytest.fixture(scope="module")
def clean():
    return generate_dataset(SIZES, seed=3)


def kinds(dataset):
    return {(found.kind, found.split_a, found.split_b) for found in check_leaks(dataset).findings}


def with_changed(dataset, split, **changes):
    rows = list(dataset[split])
    of_attack = {name: changes.pop(name) for name in INJECTION_FIELDS if name in changes}
    injections = (replace(rows[5].only, **of_attack),)
    rows[5] = replace(rows[5], injections=injections, **changes)
    return {**dataset, split: rows}


def test_the_generator_is_clean(clean):
    report = check_leaks(clean)
    assert report.ok
    assert set(report.checked) == set(LeakKind)
    assert report.absent == ()


def test_each_planted_leak_is_found(clean):
    source = next(row for row in clean["train"] if row.only.payload == "decoy")
    prompt = source.system_instruction
    planted = with_changed(clean, "validation", system_instruction=prompt.upper())
    assert (LeakKind.SYSTEM_PROMPT, "train", "validation") in kinds(planted)

    planted = with_changed(
        clean,
        "validation",
        system_instruction="Something else. Read 7 letters and count the words quickly.",
    )
    planted = with_changed(
        planted, "test_seen", system_instruction="Read 8 letters and count the words quickly."
    )
    assert kinds(planted) == {(LeakKind.TASK_WORDING, "validation", "test_seen")}

    planted = with_changed(clean, "test_novel", benign_cf_input=f" {source.benign_input}\n")
    assert kinds(planted) == {(LeakKind.BENIGN_INPUT, "train", "test_novel")}

    target = clean["test_seen"][5]
    added = injected_text(source.benign_input, source.only.injection_input)
    added = added.replace(source.only.witness, target.only.witness)
    planted = with_changed(clean, "test_seen", injection_input=f"{added}\n{target.benign_input}")
    assert kinds(planted) == {(LeakKind.INJECTION_WORDING, "train", "test_seen")}

    planted = with_changed(clean, "test_seen", witness=source.only.witness.swapcase(), payload="x")
    assert (LeakKind.WITNESS, "train", "test_seen") in kinds(planted)

    planted = with_changed(clean, "test_novel", attack_family=source.only.attack_family)
    assert (LeakKind.ATTACK_FAMILY, "train", "test_novel") in kinds(planted)


def test_test_splits_may_share_prompts(clean):
    prompt = clean["test_seen"][0].system_instruction
    assert kinds(with_changed(clean, "test_novel", system_instruction=prompt)) == set()


def test_tables_and_absent_columns(clean):
    tables = {split: to_table(rows) for split, rows in clean.items()}
    assert check_leaks(tables) == check_leaks(clean)
    bare = {split: table.select(["benign_input"]) for split, table in tables.items()}
    report = check_leaks(bare)
    assert report.ok
    assert report.checked == (LeakKind.BENIGN_INPUT,)
    assert LeakKind.WITNESS in report.absent


def test_examples_are_given(clean):
    shared = next(row for row in clean["train"] if row.only.payload == "decoy").only.witness
    planted = with_changed(clean, "validation", witness=shared, payload="decoy")
    finding = next(f for f in check_leaks(planted).findings if f.kind is LeakKind.WITNESS)
    assert finding.count == 1
    assert finding.examples == (shared.casefold(),)
