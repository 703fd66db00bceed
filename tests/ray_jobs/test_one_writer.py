"""Two commands that write into one place at once: one does, the other is refused in one sentence
(exit code 1), and what the first has finished meanwhile is not replaced."""

from __future__ import annotations

import importlib
import json
import os

import pytest

from causal_core.run.lock import only_maker, only_writer
from ray_jobs.cli import main
from tests.command_line import command

QUICK = ("--set", "evaluation.limit=2", "--set", "evaluation.max_new_tokens=2",
         "--set", "resources.workers=0", "--set", "resources.threads=1")  # fmt: skip


@pytest.fixture
def given(tiny_model_directory, tiny_data, tmp_path):
    """Arguments of each command that makes something, and what it makes."""
    rows = tiny_data / "test_seen.jsonl"
    place = tmp_path / "out"
    asked = ("--model", tiny_model_directory, "--test", f"seen={rows}", "--out", place)
    return {
        "generate": (["data", "generate", place, "--train", 8, "--validation", 4, "--test", 4],
                     place),
        "inject": (["data", "inject", rows, place], place),
        "targets": (["data", "targets", rows, tmp_path / "out.jsonl", "--model",
                     tiny_model_directory], tmp_path / "out.jsonl"),
        "export": (["export", tmp_path / "run", place], place),
        "evaluate": (["evaluate", *asked, *QUICK], place),
        "attack": (["attack", "--model", tiny_model_directory, "--data", rows, "--out", place,
                    "--rows", 2, "--budget", 4], place),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "lock"),
    [("generate", only_writer), ("inject", only_writer), ("evaluate", only_writer),
     ("attack", only_writer), ("targets", only_maker), ("export", only_maker)],
)  # fmt: skip
def test_the_second_of_two_is_refused_and_writes_nothing(name, lock, given):
    arguments, place = given[name]
    with lock(place, moved_by="elsewhere"):
        before = sorted(place.parent.rglob("*"))
        outcome = command(main, *arguments)
        assert sorted(place.parent.rglob("*")) == before
    assert outcome.returncode == 1, outcome.stderr
    assert f"process {os.getpid()} on this machine has been writing in {place}" in outcome.stderr
    assert outcome.stderr.strip().count("\n") == 0 and "run.dir" not in outcome.stderr


POINT = {"budget": 16, "value": 0.5, "low": 0.2, "high": 0.8, "n": 4}
LARGER = {
    "kind": "words", "title": "t", "unit": "u", "data": "seen", "rows": 4, "seed": 0,
    "curves": {"base": [POINT]}, "caveat": "c",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "ends", "finished"),
    [("evaluate", "ray_jobs.subjects.subjects_asked_for", "evaluation.json"),
     ("attack", "ray_jobs.attack.ways_of", "attack-words.json"),
     ("targets", "causal_core.data.reader.read_triplets", None)],
)  # fmt: skip
def test_what_another_finished_since_the_look_is_kept(name, ends, finished, given, monkeypatch):
    """It comes to its end after this one has seen an empty place, and before it takes the lock."""
    module, function = ends.rsplit(".", 1)
    original = getattr(importlib.import_module(module), function)
    arguments, place = given[name]
    result = place if finished is None else place / finished

    def meanwhile(*some, **more):
        result.parent.mkdir(exist_ok=True)
        result.write_text(json.dumps(LARGER))
        return original(*some, **more)

    monkeypatch.setattr(ends, meanwhile)
    outcome = command(main, *arguments)
    assert outcome.returncode == 1, outcome.stderr
    assert "--force" in outcome.stderr and json.loads(result.read_text()) == LARGER
