"""`causal evaluate --test NAME=FILE:FORMAT`: public test sets, most of them without answers.

1. Every benchmark that can be read can be evaluated; what has no reference is not judged by one.
2. What would be a floor is not counted, and told.
3. Training refuses rows without answers, as ever.
"""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest

from causal_core.data.benchmarks.registry import BENCHMARKS
from causal_core.data.reader import read_triplets
from causal_core.data.schema import DataError
from causal_core.evaluation.trace import ROWS
from ray_jobs import evaluate_command
from ray_jobs.cli import main
from ray_jobs.evaluate_command import EVALUATION, TESTS
from tests.causal_core.data.benchmarks import samples
from tests.causal_core.data.benchmarks.samples import write
from tests.causal_core.data.benchmarks.test_benchmarks import ALL
from tests.command_line import command

SETTINGS = ("resources.workers=0", "resources.threads=1", "evaluation.max_new_tokens=2")


def evaluate(model, folder, kind, values):
    files = [write(folder / f"{n}.json", value) for n, value in enumerate(values)]
    arguments = ["--model", model, "--out", folder / "out", "--limit", 2]
    for file in files:
        arguments += ["--test", f"mine={file}:{kind}"]
    for setting in SETTINGS:
        arguments += ["--set", setting]
    return command(main, "evaluate", *arguments)


def test_places_of_test_sets_stay_what_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = [
        "a=s3://bucket/x.parquet",
        "a=s3://bucket/y.parquet",
        "b=*.jsonl",
        "c=gs://b/c.json:sep",
    ]
    files, formats = evaluate_command.tests_of(given)
    assert files == {
        "a": ["s3://bucket/x.parquet", "s3://bucket/y.parquet"],
        "b": [str(tmp_path / "*.jsonl")],
        "c": ["gs://b/c.json"],
    }
    assert formats == {"c": "sep"}


def test_a_pattern_names_several_files_of_a_benchmark(tiny_model_directory, tmp_path):
    for number, row in enumerate(samples.SEP):
        write(tmp_path / f"part-{number}.json", [row])
    arguments = ["--test", f"mine={tmp_path}/part-*.json:sep", "--out", tmp_path / "out"]
    for setting in SETTINGS:
        arguments += ["--set", setting]
    outcome = command(main, "evaluate", "--model", tiny_model_directory, *arguments)
    assert outcome.returncode == 0, outcome.stderr
    assert f"mine: {len(samples.SEP)} rows" in outcome.stdout


def test_every_benchmark_is_tried():
    assert ALL.keys() == BENCHMARKS.keys()


@pytest.mark.parametrize("kind", ALL)
def test_a_benchmark_is_evaluated(kind, tiny_model_directory, tmp_path):
    outcome = evaluate(tiny_model_directory, tmp_path, kind, ALL[kind])
    assert outcome.returncode == 0, outcome.stderr
    found = json.loads((tmp_path / "out" / EVALUATION).read_text())
    metrics = found["models"]["base"]["sets"]["mine"]
    rows = pq.read_table(tmp_path / "out" / ROWS).to_pylist()
    references = {
        row.id: row.benign_output
        for row in read_triplets(
            tmp_path / "out" / TESTS / "mine.parquet", unanswered=True
        ).triplets()
    }
    for row in rows:
        assert (row["benign_exact"] is None) == (references[row["id"]] == "")
        assert (row["attacked_exact"] is None) or references[row["id"]]
        assert references[row["id"]] or row["margin"] is None
    judged = [row["benign_exact"] for row in rows if row["benign_exact"] is not None]
    assert (metrics["benign_exact"] is None) == (not judged)
    witnesses = sum(row["attack_succeeded"] is not None for row in rows)
    assert metrics["witnesses"] == witnesses
    if kind not in ("bipia", "notinject"):
        assert witnesses and metrics["attack_success"]["n"] == witnesses


def test_what_is_not_judged_is_told(tiny_model_directory, tmp_path):
    outcome = evaluate(tiny_model_directory, tmp_path, "sep", [samples.SEP])
    words = " ".join(outcome.stdout.split())
    assert "2 rows have no reference answer: attack success alone is judged" in words
    assert (
        "1 attacks are not judged, since their witness is there without them, in the input" in words
    )
    found = json.loads((tmp_path / "out" / EVALUATION).read_text())
    assert any("no reference" in line for line in found["evaluated"]["benchmarks"]["mine"])


def test_training_refuses_rows_without_answers(tiny_model_directory, tmp_path):
    evaluate(tiny_model_directory, tmp_path, "sep", [samples.SEP])
    with pytest.raises(DataError, match="benign_output"):
        read_triplets(tmp_path / "out" / TESTS / "mine.parquet")
