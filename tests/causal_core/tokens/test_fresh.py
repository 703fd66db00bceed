"""Attacks composed anew in every epoch: a function of (seed, epoch, row, number), within bounds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from causal_core.data.reader import read_triplets
from causal_core.data.schema import contains_witness
from causal_core.data.writer import to_table, write_triplets
from causal_core.generator.compose import CANARY_SENTENCE
from causal_core.generator.generate import generate_split
from causal_core.generator.vocabulary import pools
from causal_core.tokens.dataset import load_dataset
from causal_core.tokens.fresh import FreshAttacks
from causal_core.tokens.prompts import build_prompt_encoder
from tests.tiny_run import tiny_tokenizer


@pytest.fixture(scope="module")
def encoder():
    return build_prompt_encoder(tiny_tokenizer())


def dataset_of(rows, encoder, directory):
    write_triplets(to_table(rows), directory / "rows.jsonl")
    return load_dataset(
        [str(directory / "rows.jsonl")], encoder, max_length=4000, overlong="error",
        cache=directory,
    )  # fmt: skip


@pytest.fixture(scope="module")
def fresh(encoder, tmp_path_factory):
    first, *rows = generate_split("train", 30, seed=1, attacks_per_row=2)
    tagged = f"{first.system_instruction} {CANARY_SENTENCE.format(w='TAG-77')}"
    rows = [replace(first, system_instruction=tagged), *rows]
    directory = tmp_path_factory.mktemp("fresh")
    return FreshAttacks(dataset_of(rows, encoder, directory), encoder, seed=5)


def everything(fresh, epoch):
    return [fresh.tokens(row, epoch) for row in range(len(fresh.dataset))]


def test_an_epoch_is_the_same_whenever_it_is_asked_for(fresh, encoder):
    again = FreshAttacks(fresh.dataset, encoder, seed=5)
    backwards = [again.tokens(row, 3) for row in reversed(range(len(fresh.dataset)))]
    assert backwards[::-1] == everything(fresh, 3)
    assert again.fingerprint() == fresh.fingerprint() != fresh.dataset.fingerprint


def test_epochs_and_seeds_differ_and_what_is_benign_stays(fresh, encoder):
    first, second = everything(fresh, 0), everything(fresh, 1)
    other = everything(FreshAttacks(fresh.dataset, encoder, seed=6), 0)
    stored = [fresh.dataset.tokens(row) for row in range(len(fresh.dataset))]
    for sets in ((first, second), (first, other), (first, stored)):
        same = sum(a.injections == b.injections for a, b in zip(*sets, strict=True))
        assert same < len(first) / 4
    for made, kept in zip(first, stored, strict=True):
        assert (made.benign, made.benign_answer) == (kept.benign, kept.benign_answer)
        assert len(made.injections) == len(kept.injections) == 2


def test_no_row_is_larger_than_the_largest_of_the_file(fresh):
    for epoch in range(4):
        for tokens in everything(fresh, epoch):
            assert tokens.size_bound() <= fresh.largest


def test_rows_are_ones_that_a_file_may_hold(fresh, tmp_path):
    rows = [fresh.triplet(row, epoch) for row in range(len(fresh.dataset)) for epoch in range(3)]
    rows = [replace(row, id=f"{row.id}/{number}") for number, row in enumerate(rows)]
    write_triplets(to_table(rows), tmp_path / "made.jsonl")
    assert list(read_triplets([str(tmp_path / "made.jsonl")]).triplets()) == rows
    payloads = {injection.payload for row in rows for injection in row.injections}
    assert {"task", "say", "leak"} <= payloads
    for row in rows:
        for injection in row.injections:
            assert not contains_witness(injection.injection_output, injection.witness)


def test_a_plain_row_stays_plain_and_where_nothing_fits_the_file_holds(encoder, tmp_path):
    attacked, plain = generate_split("train", 2, seed=3)
    short = replace(attacked, injections=(replace(attacked.only, injection_input="x"),))
    fresh = FreshAttacks(
        dataset_of([short, replace(plain, injections=())], encoder, tmp_path), encoder, seed=0
    )
    assert fresh.tokens(1, 0).injections == ()
    # Nothing can be composed that is as short as the one character of the file.
    assert fresh.tokens(0, 0) == fresh.dataset.tokens(0)


def test_words_are_those_of_training(fresh):
    held_back = {w for split in ("validation", "test_novel") for w in pools(split).names}
    texts = " ".join(
        i.injection_input for row in range(30) for i in fresh.triplet(row, 0).injections
    )
    assert not any(contains_witness(texts, word) for word in held_back)
