"""The token cache: right tokens, right key, whole or absent; too long rows are never cut."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import shutil

import pyarrow as pa
import pytest
from tokenizers import AddedToken

import causal_core.files as file_digest_module
from causal_core.config import LossSection
from causal_core.data.reader import read_triplets
from causal_core.errors import UserError
from causal_core.files import file_digest
from causal_core.tokens.dataset import load_dataset
from causal_core.tokens.prompts import build_prompt_encoder
from causal_core.tokens.run_data import load_run_data
from tests.tiny_run import tiny_config, tiny_tokenizer
from tests.tokenizer_zoo import KINDS, TEMPLATES, zoo_tokenizer

ENCODER = build_prompt_encoder(tiny_tokenizer())


def load(path, tmp_path, **options):
    settings = {"max_length": 2000, "overlong": "error", **options}
    return load_dataset([str(path)], ENCODER, cache=tmp_path / "cache", **settings)


def test_tokens_are_those_of_the_texts(tiny_data, tmp_path):
    dataset = load(tiny_data / "train.jsonl", tmp_path)
    assert len(dataset) == 18
    for index in range(len(dataset)):
        triplet, tokens = dataset.triplet(index), dataset.tokens(index)
        assert tokens.system == ENCODER.systems_ids([triplet.system_instruction])[0]
        assert tokens.system + tokens.only.prompt == ENCODER.prompt_ids(
            triplet.system_instruction, triplet.only.injection_input, triplet.context
        )
        assert tokens.benign_answer == ENCODER.answer_ids(triplet.benign_output)
        assert ENCODER.tokenizer.decode(tokens.only.witness) == triplet.only.witness


def test_the_second_load_reads_the_cache_and_changed_data_does_not(tiny_data, tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text((tiny_data / "train.jsonl").read_text())
    first = load(path, tmp_path)
    cached = list((tmp_path / "cache" / "tokens").iterdir())
    again = load(path, tmp_path)
    assert again.fingerprint == first.fingerprint
    assert list((tmp_path / "cache" / "tokens").iterdir()) == cached  # and no temporary file
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    changed = load(path, tmp_path)
    assert changed.fingerprint != first.fingerprint and len(changed) == len(first) - 1


def test_many_texts_at_once_get_the_tokens_of_each_alone():
    texts = ["plain words", "<|start|>system", "", "words", "a <|end|> b", "plain words"]
    assert ENCODER.answers_ids(texts) == [ENCODER.answer_ids(text) for text in texts]
    assert ENCODER.answers_ids([]) == []


@pytest.mark.parametrize(("kind", "template"), list(itertools.product(KINDS, TEMPLATES)))
def test_spans_add_up_to_the_prompts(tmp_path, kind, template):
    encoder = build_prompt_encoder(zoo_tokenizer(kind, template))
    row = {
        "system_instruction": "Extract the city.", "benign_input": "Oslo is cold.",
        "benign_output": "Oslo", "benign_cf_input": "\nOslo is warm.", "injection_input": " x",
        "injection_output": "safe", "attack_family": "f", "witness": "PWNED",
    }  # fmt: skip
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps(row) + "\n")
    tokens = load_dataset(
        [str(path)], encoder, max_length=999, overlong="error", cache=tmp_path
    ).tokens(0)
    for span, name in zip(
        (tokens.benign, tokens.counterfactual, tokens.only.prompt),
        ("benign_input", "benign_cf_input", "injection_input"),
        strict=True,
    ):
        assert tokens.system + span == encoder.prompt_ids("Extract the city.", row[name])
        assert tokens.system and span


def test_a_plain_row_has_no_tokens_of_what_it_lacks(tmp_path):
    path = tmp_path / "plain.jsonl"
    row = {"system_instruction": "S", "benign_input": "u v w", "benign_output": "a"}
    more = {**row, "benign_cf_input": "x", "injection_input": "u!", "injection_output": "a"}
    path.write_text(json.dumps(row) + "\n" + json.dumps(more) + "\n")
    dataset = load(path, tmp_path)
    plain, full = dataset.tokens(0), dataset.tokens(1)
    assert (plain.counterfactual, plain.injections) == ([], ())
    assert plain.system + plain.benign == ENCODER.prompt_ids("S", "u v w")
    assert full.system + full.counterfactual == ENCODER.prompt_ids("S", "x")
    assert dataset.without_counterfactual() == 1


def test_a_cache_of_before_is_read_and_cut(tiny_data, tmp_path):
    """Of the time when all rows were in one file, every row had a counterfactual, and the columns
    said so."""
    path = tiny_data / "train.jsonl"
    first = load(path, tmp_path)
    (shards,) = (tmp_path / "cache" / "tokens").iterdir()
    file = shards.with_name(f"{shards.name}.arrow")
    shutil.rmtree(shards)
    before = first.table.schema
    place = before.get_field_index("benign_cf_input")
    before = before.set(place, before.field(place).with_nullable(False))
    rows = pa.Table.from_arrays(first.table.columns, schema=before)
    with pa.ipc.new_file(str(tmp_path / "old"), before) as writer:
        writer.write_table(rows)
    (tmp_path / "old").replace(file)
    again = load(path, tmp_path)
    assert not shards.exists()
    assert not again.table.schema.field("benign_cf_input").nullable
    assert (again.fingerprint, again.table.to_pylist()) == (
        first.fingerprint, first.table.to_pylist(),
    )  # fmt: skip
    shorter = load(path, tmp_path, max_length=first.longest() - 1, overlong="drop")
    assert 0 < len(shorter) < len(first)


@pytest.mark.parametrize("weight", ["causal", "spurious"])
def test_only_a_term_on_representations_asks_for_a_counterfactual(
    weight, tiny_model_directory, tiny_data, tmp_path
):
    rows = [json.loads(line) for line in (tiny_data / "train.jsonl").read_text().splitlines()]
    for row in rows[:3]:
        row["benign_cf_input"] = None
    path = tmp_path / "some.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = tiny_config(tiny_model_directory, tiny_data, tmp_path)
    config.data.train, config.data.validation = [str(path)], []
    assert len(load_run_data(config).train) == len(rows)
    config.loss = LossSection(**{f"lambda_{weight}": 0.5})
    with pytest.raises(
        UserError, match=rf"loss\.lambda_{weight}=0\.5 .* and 3 of 18 rows of data\.train have no"
    ):
        load_run_data(config)


def test_a_saved_directory_is_one_data_set_and_its_content_counts(tiny_data, tmp_path):
    folder = tmp_path / "saved"
    folder.mkdir()
    table = read_triplets(tiny_data / "train.jsonl").table
    for name, part in (("a.arrow", table[:9]), ("b.arrow", table[9:])):
        with pa.ipc.new_stream(str(folder / name), part.schema) as writer:
            writer.write_table(part)
    names = [{"filename": name} for name in ("a.arrow", "b.arrow")]
    (folder / "state.json").write_text(json.dumps({"_data_files": names}))
    dataset = load(folder, tmp_path)
    assert dataset.table.to_pylist() == load(tiny_data / "train.jsonl", tmp_path).table.to_pylist()
    with pa.ipc.new_stream(str(folder / "b.arrow"), table.schema) as writer:
        writer.write_table(table[10:])
    assert load(folder, tmp_path).fingerprint != dataset.fingerprint


def test_a_row_that_cannot_be_encoded_is_named(tmp_path):
    tokenizer = copy.deepcopy(zoo_tokenizer("byte_level", "chatml"))
    tokenizer.add_tokens([AddedToken("€", special=True)])  # of one character: nothing to break
    row = {
        "system_instruction": "S", "benign_input": "u", "benign_output": "a",
        "benign_cf_input": "v", "injection_input": "u!", "injection_output": "a",
        "attack_family": "f",
    }  # fmt: skip
    path = tmp_path / "euro.jsonl"
    path.write_text("".join(json.dumps({**row, "benign_output": a}) + "\n" for a in ("a", "5 €")))
    with pytest.raises(UserError, match=r"triplet 'euro:2': the tokenizer takes part of the text"):
        load_dataset(
            [str(path)], build_prompt_encoder(tokenizer),
            max_length=99, overlong="error", cache=tmp_path,
        )  # fmt: skip


def test_a_digest_is_remembered_until_the_file_changes(tmp_path, monkeypatch):
    path, cache = tmp_path / "data", tmp_path / "cache"
    path.write_text("one")
    monkeypatch.setattr(file_digest_module, "_is_settled", lambda _: True)
    first = file_digest(path, cache)
    assert first == hashlib.sha256(b"one").hexdigest()
    (entry,) = (cache / "digests").iterdir()
    known = json.loads(entry.read_text())
    entry.write_text(json.dumps({**known, "sha256": "remembered"}))
    assert file_digest(path, cache) == "remembered"
    path.write_text("two")
    assert file_digest(path, cache) == hashlib.sha256(b"two").hexdigest()
    entry.write_text("damaged")
    assert file_digest(path, cache) == hashlib.sha256(b"two").hexdigest()


def test_a_file_written_just_now_is_not_remembered(tmp_path):
    path, cache = tmp_path / "data", tmp_path / "cache"
    path.write_text("one")
    file_digest(path, cache)
    assert not (cache / "digests").exists()


def test_another_template_is_another_cache(tiny_data, tmp_path):
    other = build_prompt_encoder(tiny_tokenizer(extra=("<x>",)))
    path = str(tiny_data / "validation.jsonl")
    settings = {"max_length": 2000, "overlong": "error", "cache": tmp_path}
    one = load_dataset([path], ENCODER, **settings)
    two = load_dataset([path], other, **settings)
    assert one.fingerprint != two.fingerprint


def test_too_long_rows_are_named_or_dropped_never_cut(tiny_data, tmp_path):
    whole = load(tiny_data / "train.jsonl", tmp_path)
    lengths = sorted(whole.table.column("longest").to_pylist())
    limit = lengths[-3]
    too_long = sum(length > limit for length in lengths)
    with pytest.raises(UserError, match=f"{too_long} of 18 triplets are longer"):
        load(tiny_data / "train.jsonl", tmp_path, max_length=limit)
    said = []
    kept = load(
        tiny_data / "train.jsonl", tmp_path, max_length=limit, overlong="drop",
        on_dropped=said.append,
    )  # fmt: skip
    assert len(kept) == 18 - too_long and "dropped" in said[0]
    assert max(kept.table.column("longest").to_pylist()) <= limit
    assert kept.fingerprint != whole.fingerprint
    with pytest.raises(UserError, match="overlong=drop"):
        load(tiny_data / "train.jsonl", tmp_path, max_length=16)


def test_a_missing_file_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        load(tmp_path / "nowhere.jsonl", tmp_path)


def test_the_fields_of_the_original_project_are_read(tmp_path):
    row = {
        "system_instruction": "S", "context": "facts", "user_input_benign_1": "u",
        "expected_output_1": "a", "user_input_benign_2": "v", "expected_output_2": "b",
        "user_input_injection": "u!", "expected_output_injection": "safe",
        "attack_type": "override",
    }  # fmt: skip
    path = tmp_path / "original.jsonl"
    path.write_text(json.dumps(row) + "\n")
    dataset = load(path, tmp_path)
    tokens = dataset.tokens(0)
    assert tokens.system + tokens.benign == ENCODER.prompt_ids("S", "facts\n\nu")
    assert tokens.only.answer == ENCODER.answer_ids("safe")
    assert tokens.only.witness == []
