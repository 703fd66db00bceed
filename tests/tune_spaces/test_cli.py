"""`causal tune` from outside: help, errors, --dry-run, and that nothing heavy loads before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.command_line import command, program
from tests.tune_spaces.sweeps import SPACE, write_sweep
from tune_spaces.cli import main


def tune(*arguments):
    return command(main, "tune", *arguments)


@pytest.fixture
def sweep_file(tiny_model_directory, tiny_data, tmp_path):
    run = tmp_path / "run"
    return write_sweep(tmp_path / "sweep.yaml", tiny_model_directory, tiny_data, run, {})


def test_the_program_has_all_commands_and_starts_light():
    code = (
        "import sys, tune_spaces.cli as c; "
        "print([m for m in ('torch','ray','transformers','pyarrow','optuna') if m in sys.modules],"
        "sorted(i.name or i.callback.__name__ for i in c.app.registered_commands))"
    )
    outcome = program("-c", code)
    assert outcome.stdout.startswith("[]"), outcome.stdout + outcome.stderr
    assert "'train'" in outcome.stdout and "'tune'" in outcome.stdout


def test_a_dry_run_says_what_fits_and_writes_nothing(sweep_file):
    outcome = tune(sweep_file, "--dry-run", "--json", "tune.gpu_memory=2GiB")
    assert outcome.returncode == 0, outcome.stderr
    plan = json.loads(outcome.stdout)
    assert plan["fitting"] == plan["points"] == 200 and plan["trials"] == 3
    assert plan["budget_bytes"] == 2**31 and plan["steps_per_trial"] == 5
    assert plan["expected_seconds"] > 0
    assert set(plan["space"]) == set(SPACE)
    for words in ("lora.rank", "2 | 4", "0 in 30% of draws", "200 of 200 points fit 2.00 GiB"):
        assert words in outcome.stderr
    assert not (sweep_file.parent / "run").exists()


def test_what_cannot_work_is_refused_before_ray_starts(sweep_file):
    for arguments, message in (
        (["tune.gpu_memory=1MiB"], "no point of tune.space fits"),
        (["tune.trails=3"], "did you mean `trials`"),
    ):
        outcome = tune(sweep_file, *arguments)
        assert outcome.returncode == 1 and message in outcome.stderr, outcome.stderr
        assert "Traceback" not in outcome.stderr
        assert not (sweep_file.parent / "run" / "ledger.jsonl").exists()


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("dry", [True, False])
def test_a_split_that_shares_prompts_is_refused_before_any_trial(sweep_file, split, dry):
    tree = yaml.safe_load(sweep_file.read_text())
    first = Path(tree["data"]["train"][0]).read_text().splitlines()[0]
    leaky = sweep_file.with_name("leaky.jsonl")
    row = json.loads(first)
    leaky.write_text(json.dumps({**row, "benign_input": row["benign_input"].upper()}) + "\n")
    if split == "validation":
        tree["data"]["validation"] = [*tree["data"]["validation"], str(leaky)]
    else:
        tree["data"]["test"]["novel"] = [str(leaky)]
    sweep_file.write_text(yaml.safe_dump(tree))
    outcome = tune(sweep_file, *(["--dry-run"] if dry else []))
    assert outcome.returncode == 1, outcome.stderr
    assert "1 prompts (S, U) are both in train and in " in outcome.stderr
    assert not (sweep_file.parent / "run").exists()
