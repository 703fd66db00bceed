"""No name is markup and none drives the terminal: each command's output with hostile names."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console
from typer.testing import CliRunner

from causal_core.errors import UserError
from ray_jobs.console import logs
from ray_jobs.console.exit_codes import exit_with_code
from ray_jobs.console.plain import plain
from ray_jobs.console.progress import training_progress
from ray_jobs.console.result import show_result
from ray_jobs.data_command import data_app
from ray_jobs.doctor.check import Check
from ray_jobs.doctor.checks import show_checks
from ray_jobs.plan.command import show_plan

HOSTILE = ["[/]", "[/red]", "[bold", "[link=http://evil]x[/link]", "\x1b[31m\x1b]0;owned\x07",
           "\x9b2J", "\u202egnirts", "\ud800", "s3://user:secret@host", ":smile:"]  # fmt: skip


def console() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=300)


def assert_harmless(shown: str) -> None:
    assert not any(c in shown for c in "\x1b\x9b\x07\u202e\ud800")


def estimate(value: float) -> dict[str, float]:
    return {"value": value, "low": value / 2, "high": value, "n": 5}


@pytest.mark.parametrize("name", HOSTILE)
def test_the_result_of_a_run(name, tmp_path):
    metrics = {"n": 5, "attack_success": estimate(0.4), "uplift": estimate(0.2),
               "benign_exact": estimate(0.9)}  # fmt: skip
    models = {model: {"sets": {name: metrics}} for model in ("base", name, "trained")}
    evaluation = {"models": models, "descriptions": dict.fromkeys(models, name), "paired": {}}
    run = {"steps": 1, "planned_steps": 1, "samples": 2, "skipped_steps": 0, "seconds": 1.0}
    target = console()
    show_result(target, tmp_path / "[/]", {"evaluation": evaluation, "run": run})
    shown = target.file.getvalue()
    assert_harmless(shown)
    assert plain(name).plain in shown.replace("\n", "")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_plan_and_a_diagnosis(name):
    plan = {
        "parameters": {"adapter": 1, "projection": 1, "base": 1}, "workers": 1,
        "gpus_per_worker": 1, "threads_per_worker": 1, "loss": {name: 1.0}, "model": name,
        "quantization": name, "train_triplets": 1, "validation_triplets": 1,
        "mean_triplet_tokens": 1.0, "optimizer_steps": 1, "global_batch": 1, "warmup_steps": 1,
        "train_tokens": 1, "micro_batch_tokens": 1, "refused_here": None, "without_ray": True,
    }  # fmt: skip
    target = console()
    show_plan(target, plan)
    show_checks(target, [Check(name, name, "failed", name, name)])
    assert_harmless(target.file.getvalue())


@pytest.mark.parametrize("name", HOSTILE)
def test_progress_errors_and_logs(name, tmp_path, capsys):
    logs.configure_logs("text", run=name)
    logging.getLogger("ray_jobs.x").warning("skipping %s", name)
    with training_progress(console(), tmp_path, 1):
        pass
    for error in (UserError(f"no file {name}"), RuntimeError(name)):
        with pytest.raises(SystemExit):
            exit_with_code(lambda error=error: (_ for _ in ()).throw(error))
    shown = capsys.readouterr()
    assert_harmless(shown.out + shown.err)
    assert "secret" not in shown.err


def test_a_location_that_is_given_as_a_path_hides_its_password():
    location = "s3://user:secret/secret@bucket/x.jsonl"  # pathlib drops one of the slashes
    for command in (["check", location], ["convert", location, "x.parquet"],
                    ["check", location, "--json"]):  # fmt: skip
        result = CliRunner().invoke(data_app, command)
        assert result.exit_code == 1 and "secret" not in result.output


@pytest.mark.parametrize("name", [n for n in HOSTILE if "/" not in n and "\ud800" not in n])
def test_paths_and_rows_of_data(name, tmp_path):
    folder = tmp_path / name
    small = ["--train", "4", "--validation", "4", "--test", "4"]
    runner = CliRunner()
    outputs = [runner.invoke(data_app, ["generate", str(folder), *small])]
    files = [str(folder / "train.jsonl"), str(folder / "validation.jsonl")]
    outputs += [
        runner.invoke(data_app, ["check", *files]),
        runner.invoke(data_app, ["check", str(folder / name)]),
        runner.invoke(data_app, ["convert", files[0], str(tmp_path / f"{name}.parquet")]),
        runner.invoke(data_app, ["convert", files[0], str(folder)]),
    ]
    assert [result.exit_code for result in outputs] == [0, 0, 1, 0, 1]
    for result in outputs:
        assert_harmless(result.output)
