"""A whole run in this process: what it leaves, and what may not touch it.

1. An evaluation for the record is in all files of the run.
2. Its base is evaluated without the fresh adapter, which would say the same.
3. While a run is being written, `train`, `evaluate` and `train --fresh` of it are refused.
"""

from __future__ import annotations

import json
import shutil

import pytest
from peft.tuners.tuners_utils import BaseTunerLayer
from rich.console import Console

from causal_core.config_file import load_config
from causal_core.errors import UserError
from causal_core.evaluation.rows import evaluate_rows
from causal_core.files import CONFIG
from causal_core.run.lock import LOCK, only_writer
from ray_jobs.cli import main
from ray_jobs.run import run_evaluation, run_training
from tests.command_line import command
from tests.tiny_run import tiny_config

CONSOLE = Console(quiet=True)


@pytest.fixture(scope="module")
def config(tiny_model_directory, tiny_data, tmp_path_factory):
    config = tiny_config(
        tiny_model_directory,
        tiny_data,
        tmp_path_factory.mktemp("whole") / "run",
        train={"max_steps": 1, "global_batch": 4},
        evaluation={"max_new_tokens": 1, "limit": 2},
    )
    config.data.limit_validation = 2
    run_training(config, CONSOLE, test=False)
    return config


@pytest.fixture
def directory(config):
    from causal_core.config import run_directory

    return run_directory(config)


def contents(directory):
    """Every file of a run, with what tells that it was written again."""
    return {
        path.relative_to(directory): (path.stat().st_mtime_ns, path.read_bytes())
        for path in directory.rglob("*")
        if path.is_file()
    }


def test_an_evaluation_for_the_record_is_in_all_files_of_the_run(directory):
    full = run_evaluation(directory, CONSOLE, {})["evaluation"]
    assert full["models"]["trained"]["sets"]["novel"]["n"] == 2
    assert json.loads((directory / "summary.json").read_text())["evaluation"] == full


def test_the_base_is_evaluated_without_an_adapter_that_says_the_same(directory, monkeypatch):
    found = {}

    def both_ways(model, *arguments, **more):
        adapted = [m for m in model.modules() if isinstance(m, BaseTunerLayer)]
        off = {layer.disable_adapters for layer in adapted}
        rows = evaluate_rows(model, *arguments, **more)
        for layer in adapted:
            layer._disable_adapters = False
        found.setdefault(tuple(off), []).append(rows == evaluate_rows(model, *arguments, **more))
        for layer in adapted:
            layer._disable_adapters = off == {True}
        return rows

    monkeypatch.setattr("causal_core.evaluation.rows.evaluate_rows", both_ways)
    run_evaluation(directory, CONSOLE, {})
    assert found == {(True,): [True, True], (False,): [True, True]}  # of two test sets each


def test_a_finished_run_keeps_the_config_that_its_numbers_are_of(config, directory):
    run_evaluation(directory, CONSOLE, {})
    before = (directory / CONFIG).read_bytes()
    other = config.model_copy(deep=True)
    other.evaluation.limit, other.data.test = 1, {"other": config.data.test["novel"]}
    result = run_training(other, CONSOLE)
    assert set(result["evaluation"]["models"]["trained"]["sets"]) == {"seen", "novel"}
    assert (directory / CONFIG).read_bytes() == before


def test_a_run_of_gpus_is_not_evaluated_where_there_is_none(directory, tmp_path, monkeypatch):
    shutil.copytree(directory, tmp_path / "run")
    recorded = load_config(tmp_path / "run" / CONFIG)
    recorded.resources.gpus_per_worker = 1
    (tmp_path / "run" / CONFIG).write_text(recorded.to_yaml())
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(UserError, match=r"no GPU here.*gpus_per_worker=0.*config\.yaml"):
        run_evaluation(tmp_path / "run", CONSOLE, {})


def test_a_directory_that_is_being_written_is_left_alone(config, directory):
    with only_writer(directory):
        before = contents(directory)
        for attempt in (
            lambda: run_training(config, CONSOLE),
            lambda: run_training(config, CONSOLE, fresh=True),
            lambda: run_evaluation(directory, CONSOLE, {}),
        ):
            with pytest.raises(UserError, match="has been writing in"):
                attempt()
        outcome = command(main, "report", directory)
        assert outcome.returncode == 1 and "has been writing in" in outcome.stderr
        assert contents(directory) == before
    assert not (directory / LOCK).exists()
