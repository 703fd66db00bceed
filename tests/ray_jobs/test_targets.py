"""Answers written by the model: its greedy ones, for rows without any, and nothing asked twice."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from causal_core.config_file import parse_config
from causal_core.data.reader import read_triplets
from causal_core.data.writer import to_table, write_triplets
from causal_core.generator.generate import generate_split
from causal_core.pretrained.loading import load_base
from causal_core.tokens.run_data import load_encoder
from ray_jobs import own_answers
from ray_jobs.cli import app

TOKENS = 6


@pytest.fixture
def rows(tmp_path):
    """Eight attacked rows, of which the first three have answers, and two plain ones."""
    found = [row.to_row() for row in generate_split("train", 10, seed=2)]
    for number, row in enumerate(found):
        if number >= 8:
            row["injections"] = []
        if number >= 3:
            del row["benign_output"]
            for injection in row["injections"]:
                del injection["injection_output"]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


def targets(rows, out, model, *options):
    arguments = ["data", "targets", str(rows), str(out), "--model", str(model), *options]
    return CliRunner().invoke(app, [*arguments, "--max-new-tokens", str(TOKENS)])


@pytest.fixture(autouse=True)
def answers_that_end(monkeypatch):
    """Random weights never end an answer: they are cut a token before."""
    greedy = own_answers.greedy_answers
    asked = []

    def ended(model, prompts, **options):
        asked.append(len(prompts))
        return [ids[: TOKENS - 1] for ids in greedy(model, prompts, **options)]

    monkeypatch.setattr(own_answers, "greedy_answers", ended)
    return asked


def test_rows_without_an_answer_get_the_models_and_others_keep_theirs(
    rows, tiny_model_directory, tmp_path
):
    out = tmp_path / "out.jsonl"
    result = targets(rows, out, tiny_model_directory, "--json")
    assert result.exit_code == 0, result.output
    about = json.loads(result.stdout.splitlines()[-1])
    made = {row.id: row for row in read_triplets(str(out)).triplets()}
    assert about["rows"] == len(made) and about["answered"] == len(made) - 3
    given = {r["id"]: r for r in map(json.loads, rows.read_text().splitlines())}
    config = parse_config({"model": {"name_or_path": str(tiny_model_directory)}})
    encoder = load_encoder(config)
    base = load_base(config.model, torch.device("cpu"), None)
    for row in made.values():
        old = given[row.id].get("benign_output")
        if old is not None:
            assert row.benign_output == old
            continue
        ids = encoder.prompt_ids(row.system_instruction, row.benign_input, row.context)
        start = len(ids)
        for _ in range(TOKENS - 1):
            with torch.no_grad():
                ids.append(int(base(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        assert row.benign_output == encoder.decode(ids[start:]).strip()
        assert all(i.injection_output == row.benign_output for i in row.injections)
    assert not list(tmp_path.glob("*.part"))


def test_splits_that_share_prompts_are_told(rows, tiny_model_directory, tmp_path):
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    again = [{**row, "id": f"again {row['id']}", "split": "test_seen"} for row in lines]
    rows.write_text("".join(json.dumps(row) + "\n" for row in lines + again))
    said = targets(rows, tmp_path / "said.jsonl", tiny_model_directory).output
    assert "leak: train and test_seen share 10" in said.replace("\n", " ")
    result = targets(rows, tmp_path / "out.jsonl", tiny_model_directory, "--json")
    assert json.loads(result.stdout.splitlines()[-1])["leaks"]["ok"] is False


def test_an_interrupted_command_goes_on_where_it_was(
    rows, tiny_model_directory, tmp_path, monkeypatch, answers_that_end
):
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    assert targets(rows, whole, tiny_model_directory).exit_code == 0
    monkeypatch.setattr(own_answers, "_AT_ONCE", 2)
    greedy, calls = own_answers.greedy_answers, iter(range(2))

    def dies(*arguments, **options):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return greedy(*arguments, **options)

    monkeypatch.setattr(own_answers, "greedy_answers", dies)
    targets(rows, cut, tiny_model_directory)
    part = tmp_path / "cut.jsonl.part"
    assert not cut.exists() and len(part.read_text().splitlines()) == 5
    with part.open("a") as file:
        file.write('["half a li')
    monkeypatch.setattr(own_answers, "greedy_answers", greedy)
    answers_that_end.clear()
    assert targets(rows, cut, tiny_model_directory).exit_code == 0
    assert sum(answers_that_end) == 3
    assert cut.read_bytes() == whole.read_bytes()


def test_parquet_without_the_column_of_answers_is_read(rows, tiny_model_directory, tmp_path):
    table = read_triplets(str(rows), unanswered=True).table.drop(["benign_output"])
    import pyarrow.parquet as pq

    pq.write_table(table.slice(8), tmp_path / "plain.parquet")
    out = tmp_path / "out.parquet"
    result = targets(tmp_path / "plain.parquet", out, tiny_model_directory)
    assert result.exit_code == 0, result.output
    assert all(not row.injections for row in read_triplets(str(out)).triplets())


def test_an_answer_that_does_not_end_is_no_target(
    rows, tiny_model_directory, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        own_answers, "greedy_answers", lambda model, prompts, **_: [[70] * TOKENS for _ in prompts]
    )
    result = targets(rows, tmp_path / "out.jsonl", tiny_model_directory)
    assert result.exit_code == 0 and "7 rows left out" in result.output
    assert read_triplets(str(tmp_path / "out.jsonl")).table.num_rows == 3


def test_a_witness_that_the_model_says_unasked_leaves_the_row_out(
    tiny_model_directory, tmp_path, monkeypatch
):
    (row,) = generate_split("train", 1, seed=2)
    raw = row.to_row()
    del raw["benign_output"], raw["injections"][0]["injection_output"]
    plain = {**raw, "id": "plain", "benign_input": "Something else.", "injections": []}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(raw) + "\n" + json.dumps(plain) + "\n")
    said = f"It is {row.only.witness} then."
    monkeypatch.setattr(own_answers.PromptEncoder, "decode", lambda self, ids: said)
    result = targets(path, tmp_path / "out.jsonl", tiny_model_directory)
    assert result.exit_code == 0 and "is in the safe answer" in result.output
    assert [r.id for r in read_triplets(str(tmp_path / "out.jsonl")).triplets()] == ["plain"]


def test_training_refuses_rows_without_answers(rows):
    result = CliRunner().invoke(app, ["data", "check", str(rows)])
    assert result.exit_code == 1 and "benign_output" in result.output


def test_what_is_there_is_not_replaced(rows, tiny_model_directory, tmp_path):
    out = tmp_path / "out.jsonl"
    write_triplets(to_table(generate_split("train", 1, 0)), out)
    before = out.read_bytes()
    result = targets(rows, out, tiny_model_directory)
    assert result.exit_code == 1 and "exists already" in result.output
    assert out.read_bytes() == before


def test_without_a_model_it_names_its_own_options(rows, tmp_path):
    arguments = ["data", "targets", str(rows), str(tmp_path / "out.jsonl")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "no model to ask: name one with --model, --adapter or --run" in result.output


def test_chats_that_end_with_their_question_are_answered(tiny_model_directory, tmp_path):
    turns = [{"role": "system", "content": "Name it."}, {"role": "user", "content": "A red car."}]
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"messages": turns}) + "\n")
    result = targets(path, tmp_path / "out.jsonl", tiny_model_directory)
    assert result.exit_code == 0, result.output
    [row] = read_triplets(str(tmp_path / "out.jsonl")).triplets()
    assert (row.system_instruction, row.benign_input) == ("Name it.", "A red car.")
    assert row.benign_output
