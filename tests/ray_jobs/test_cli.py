"""The command line from outside: exit codes, messages, and a whole tiny run with its report.

Commands run in this process (tests/command_line.py). As programs of their own run a usage error,
what must not be imported and, slow, a whole training.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from ray_jobs.cli import main
from ray_jobs.train import config_first
from ray_jobs.train import main as entry_point
from tests.command_line import command, program
from tests.tiny_run import tiny_config

pytestmark = pytest.mark.drawn

REPOSITORY = Path(__file__).resolve().parents[2]


def causal(*arguments):
    return command(main, *arguments)


@pytest.fixture(scope="module")
def config_file(tiny_model_directory, tiny_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    config = tiny_config(tiny_model_directory, tiny_data, folder / "run")
    path = folder / "config.yaml"
    path.write_text(config.to_yaml())
    return path


@pytest.fixture(scope="module")
def finished(config_file):
    outcome = causal("train", config_file, "--json")
    assert outcome.returncode == 0, outcome.stderr
    return config_file.parent / "run", json.loads(outcome.stdout)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "nowhere.yaml"], 1, "nowhere.yaml: no such config file"),
        (["train"], 2, "no config was given: causal init"),
        (["train", "x.yaml", "--frehs"], 2, "No such option"),
        (["nonsense"], 2, "No such command"),
        (["evaluate", "nowhere"], 1, "no such run directory"),
        (["report", "nowhere"], 1, "summary.json"),
        (["data", "check", "nowhere.jsonl"], 1, "nowhere.jsonl"),
    ],
)
def test_exit_codes_and_messages(arguments, code, message):
    outcome = causal(*arguments)
    assert outcome.returncode == code
    assert message in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_the_program_leaves_with_the_same_code():
    outcome = program("-m", "ray_jobs.cli", "train", "x.yaml", "--frehs")
    assert outcome.returncode == 2 and "No such option" in outcome.stderr


def test_a_config_error_ends_before_anything_is_written(config_file, tmp_path):
    outcome = causal("train", config_file, f"run.dir={tmp_path / 'new'}", "train.epoch=3")
    assert outcome.returncode == 1 and "did you mean `epochs`" in outcome.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config", "x.yaml", "a=b", "--fresh"],
        ["a=b", "--config", "x.yaml", "--fresh"],
        ["a=b", "--config=x.yaml", "--fresh"],
        ["x.yaml", "a=b", "--fresh"],
    ],
)
def test_the_config_of_the_raw_entry_point_may_stand_anywhere(arguments):
    assert config_first(arguments) == ["x.yaml", "a=b", "--fresh"]


def test_the_raw_entry_point_has_the_options_and_errors_of_the_command():
    outcome = command(entry_point, "a.b=1", "--config", "nowhere.yaml", "--fresh")
    assert outcome.returncode == 1 and "nowhere.yaml: no such config file" in outcome.stderr
    outcome = command(entry_point, "--config", "nowhere.yaml", "--frehs")
    assert outcome.returncode == 2 and "No such option" in outcome.stderr


@pytest.mark.slow
def test_the_raw_entry_point_is_the_same_code_path(config_file, tmp_path):
    outcome = program(
        "-m", "ray_jobs.train", "--config", config_file, "--no-evaluate", "--json",
        f"run.dir={tmp_path}", "train.max_steps=1",
    )  # fmt: skip
    assert outcome.returncode == 0, outcome.stderr
    assert json.loads(outcome.stdout)["run"]["steps"] == 1
    refused = program("-m", "ray_jobs.train", "--config", config_file, "train.epoch=1")
    assert refused.returncode == 1 and "did you mean" in refused.stderr


def test_a_run_leaves_config_summary_metrics_and_report(finished):
    run, result = finished
    assert result == json.loads((run / "summary.json").read_text())
    assert result["status"] == "finished"
    assert yaml.safe_load((run / "config.yaml").read_text()) == result["config"]
    assert set(result["evaluation"]["models"]) == {"base", "trained"}
    assert set(result["evaluation"]["models"]["trained"]["sets"]) == {"seen", "novel"}
    kinds = [json.loads(x)["kind"] for x in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"train", "validation", "evaluation"} == set(kinds)
    assert "<html" in (run / "report.html").read_text()


@pytest.mark.slow
def test_evaluate_again_adds_models_and_leaves_the_record_alone(finished):
    run, _ = finished
    before = (run / "summary.json").read_bytes()
    outcome = causal("evaluate", run, "--against", f"twin={run}", "--limit", "3", "--json")
    assert outcome.returncode == 0, outcome.stderr
    evaluation = json.loads(outcome.stdout)
    assert list(evaluation["models"]) == ["base", "twin", "trained"]
    sets = evaluation["models"]["trained"]["sets"]
    assert sets["seen"]["n"] == 3
    assert sets == evaluation["models"]["twin"]["sets"]
    assert (run / "summary.json").read_bytes() == before
    bad = causal("evaluate", run, "--against", "trained=x")
    assert bad.returncode == 1 and "NAME=RUN_DIR" in bad.stderr


def test_fresh_starts_over_and_keeps_the_old_run(config_file, tmp_path):
    arguments = [config_file, f"run.dir={tmp_path / 'r'}", "--no-evaluate", "train.max_steps=2"]
    assert causal("train", *arguments).returncode == 0
    again = causal("train", *arguments, "--fresh")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "r.1" / "summary.json").is_file()
    assert (tmp_path / "r" / "summary.json").is_file()


def test_plan_counts_without_weights(config_file):
    outcome = causal("plan", config_file, "train.epochs=2", "--json")
    assert outcome.returncode == 0, outcome.stderr
    plan = json.loads(outcome.stdout)
    assert plan["optimizer_steps"] == 10 and plan["samples"] == 36


def test_plan_refuses_a_model_whose_template_training_will_refuse(config_file, tmp_path):
    described = yaml.safe_load(config_file.read_text())
    model = shutil.copytree(described["model"]["name_or_path"], tmp_path / "model")
    (model / "chat_template.jinja").write_text("{% for m in %}")
    outcome = causal("plan", config_file, f"model.name_or_path={model}", "--json")
    assert outcome.returncode == 1 and "the chat template" in outcome.stderr
    assert json.loads(outcome.stdout)["memory"]
    gone = f"data.train={tmp_path / 'not-here.jsonl'}"
    outcome = causal("plan", config_file, f"model.name_or_path={model}", gone)
    assert outcome.returncode == 1 and "the chat template" in outcome.stderr


def test_plan_refuses_splits_that_share_prompts_as_training_will(config_file, tmp_path):
    shared = yaml.safe_load(config_file.read_text())["data"]["train"][0]
    outcome = command(main, "plan", config_file, f"data.test={{same: {shared}}}")
    assert outcome.returncode == 1 and "both in train and in same" in outcome.stderr
    gone = f"data.test={{same: {tmp_path / 'not-here.jsonl'}}}"
    assert command(main, "plan", config_file, gone).returncode == 0


def test_help_is_quick_to_import():
    code = "import sys, ray_jobs.cli; print([m for m in ('torch','ray','transformers','pyarrow') "
    outcome = program("-c", code + "if m in sys.modules])")
    assert outcome.stdout.strip() == "[]", outcome.stderr


def test_verify_resume_compares_every_tensor(config_file):
    outcome = causal("verify-resume", config_file, "--steps", "4", "--json")
    assert outcome.returncode == 0, outcome.stderr
    parts = {c["part"]: c for c in json.loads(outcome.stdout)}
    assert parts["adapter"]["tensors"] == 28 and parts["projection head"]["tensors"] == 6
    assert parts["optimizer state"]["tensors"] == 3 * 34
    assert all(c["same"] for c in parts.values())
    assert causal("verify-resume", config_file, "--steps", "1").returncode == 1


def test_verify_resume_notices_a_difference():
    import torch

    from ray_jobs.verify_resume import _compare_tensors

    one = {"a": torch.ones(3), "b": torch.zeros(2)}
    changed = {"a": torch.ones(3), "b": torch.tensor([0.0, 1e-9])}
    assert _compare_tensors("x", one, dict(one)).same
    found = _compare_tensors("x", one, changed)
    assert not found.same and found.identical == 1
    assert _compare_tensors("x", one, {"a": torch.ones(3)}).largest_difference == float("inf")


def test_the_version_is_the_packages():
    import causal_core

    outcome = causal("--version")
    assert outcome.returncode == 0 and causal_core.__version__ in outcome.stdout
    pyproject = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{causal_core.__version__}"' in pyproject


@pytest.mark.parametrize("group", [(), ("data",), ("jobs",)])
def test_no_line_of_help_is_cut(group):
    outcome = causal(*group, "--help")
    assert outcome.returncode == 0 and "..." not in outcome.stdout.replace("COMMAND [ARGS]...", "")


def test_completion_can_be_installed():
    assert "--install-completion" in causal("--help").stdout


def test_train_without_a_config_says_where_to_find_one(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert "causal init writes one" in causal("train").stderr
    monkeypatch.chdir(REPOSITORY)
    outcome = causal("train")
    assert outcome.returncode == 2 and "configs/cpu.yaml" in outcome.stderr
    assert "tune-cpu" not in outcome.stderr


def test_report_as_json_holds_numbers_and_verdict(finished):
    run, result = finished
    outcome = causal("report", run, "--json")
    said = json.loads(outcome.stdout)
    assert said["run"] == result["run"] and said["verdict"]["label"]
    assert causal("report", run).stdout.strip() == said["report"]
