"""A model is not judged on prompts that it was trained on."""

from __future__ import annotations

import json

import pytest

from causal_core.data.leaks import LeakKind, check_leaks
from causal_core.errors import UserError
from causal_core.tokens.dataset import load_dataset
from causal_core.tokens.overlap import refuse_overlap
from causal_core.tokens.prompts import build_prompt_encoder
from tests.tiny_run import tiny_tokenizer


@pytest.fixture
def split(tiny_data, tmp_path):
    encoder = build_prompt_encoder(tiny_tokenizer())

    def load(name):
        path = str(tiny_data / f"{name}.jsonl")
        return load_dataset([path], encoder, max_length=2000, overlong="error", cache=tmp_path)

    return load


def test_disjoint_splits_pass_in_silence(split, tmp_path):
    refuse_overlap(
        {"train": split("train"), "validation": split("validation"), "seen": split("test_seen")},
        "error",
        pytest.fail,
        tmp_path,
    )


@pytest.mark.parametrize("other", ["validation", "seen"])
def test_a_shared_prompt_is_refused_or_said(split, other, tmp_path):
    splits = {"train": split("train"), other: split("train").head(4)}
    with pytest.raises(UserError, match=f"4 prompts .* both in train and in {other}"):
        refuse_overlap(splits, "error", pytest.fail, tmp_path)
    said = []
    refuse_overlap(splits, "warn", said.append, tmp_path)
    assert len(said) == 1


def test_test_sets_may_share_prompts(split, tmp_path):
    refuse_overlap(
        {"seen": split("test_seen"), "novel": split("test_seen")}, "error", pytest.fail, tmp_path
    )


def test_a_prompt_that_only_looks_different_is_the_same_prompt(tmp_path):
    encoder = build_prompt_encoder(tiny_tokenizer())
    row = {
        "system_instruction": "Name the city.", "context": "It\u2019s cold.",
        "benign_input": "Send it to Rome.", "benign_output": "Rome",
        "benign_cf_input": "c", "injection_input": "i", "injection_output": "Rome",
        "attack_family": "f",
    }  # fmt: skip
    other = {
        **row, "context": "it's\u00a0cold.", "benign_input": " Send it  to \uff32o\u200bme.\n",
    }  # fmt: skip
    splits = {}
    for name, content in (("train", row), ("seen", other)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text(json.dumps(content) + "\n")
        splits[name] = load_dataset(
            [str(path)], encoder, max_length=2000, overlong="error", cache=tmp_path
        )
    with pytest.raises(UserError, match="1 prompts"):
        refuse_overlap(splits, "error", pytest.fail, tmp_path)
    tables = {name: data.table for name, data in splits.items()}
    assert LeakKind.BENIGN_INPUT in {found.kind for found in check_leaks(tables).findings}


def test_a_prompt_that_training_has_as_its_counterfactual_is_shared_too(tmp_path):
    encoder = build_prompt_encoder(tiny_tokenizer())
    row = {
        "system_instruction": "Name the city.", "benign_input": "Send it to Rome.",
        "benign_output": "Rome", "injection_input": "i", "injection_output": "Rome",
        "benign_cf_input": "Send it to Oslo.", "benign_cf_output": "Oslo", "attack_family": "f",
    }  # fmt: skip
    other = {**row, "benign_input": "send it to Oslo. ", "benign_cf_input": "Send it to Bonn."}
    none = {key: value for key, value in row.items() if not key.startswith("benign_cf")}
    splits = {}
    for name, content in (("train", row), ("seen", other), ("alone", none)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text(json.dumps(content) + "\n")
        splits[name] = load_dataset(
            [str(path)], encoder, max_length=2000, overlong="error", cache=tmp_path
        )
    with pytest.raises(UserError, match=r"1 prompts .* both in train and in seen"):
        refuse_overlap(splits, "error", pytest.fail, tmp_path)
    disjoint = {"train": splits["alone"], "seen": splits["seen"]}
    refuse_overlap(disjoint, "error", pytest.fail, tmp_path)
