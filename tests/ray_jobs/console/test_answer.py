"""What a program gets from `--json`: one document, and the errors in it where a command fails; and
what becomes of an answer that standard output does not take."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from causal_core.errors import RunFailedError
from ray_jobs.console.answer import answers_in_json, print_json
from ray_jobs.console.exit_codes import RUN_FAILED, USAGE, USER_INPUT, exit_with_code
from tune_spaces.cli import app

FAILING = [
    ("train", "none.yaml"),
    ("plan", "none.yaml"),
    ("tune", "none.yaml"),
    ("evaluate", "no-run"),
    ("report", "no-run"),
    ("attack", "no-run"),
    ("guard", "no-run"),
    ("doctor", "none.yaml"),
    ("verify-resume", "none.yaml"),
    ("export", "no-run", "out"),
    ("try", "no-run", "--system", "x", "--input", "y"),
    ("jobs", "list", "--address", "http://127.0.0.1:9"),
    ("data", "check", "none.jsonl"),
    ("data", "generate", "a-file"),
    ("data", "targets", "none.jsonl", "out.jsonl", "--model", "demo"),
    ("data", "inject", "none.jsonl", "out"),
    ("data", "tokenize", "none.jsonl", "--model", "demo"),
    ("data", "benchmark", "injecagent", "none.json", "out.jsonl"),
]


def left(arguments, capsys, monkeypatch):
    """Exit code, stdout and stderr of a command of this process."""
    monkeypatch.setattr(sys, "argv", ["causal", *arguments])
    with pytest.raises(SystemExit) as leaving:
        exit_with_code(lambda: app())
    shown = capsys.readouterr()
    return leaving.value.code, shown.out, shown.err


@pytest.mark.parametrize("command", FAILING, ids=" ".join)
def test_a_command_that_fails_says_so_in_json_too(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("a-file").write_text("")
    code, out, err = left([*command, "--json"], capsys, monkeypatch)
    assert code in (USER_INPUT, RUN_FAILED), err
    found = json.loads(out)
    assert found["ok"] is False and found["error_count"] == len(found["errors"]) == 1
    assert found["errors"][0]["reason"] in err and "Traceback" not in err
    code_without, out, _ = left(command, capsys, monkeypatch)
    assert (code_without, out) == (code, "")


def test_every_command_that_answers_in_json_is_among_them():
    def answering(command, *names):
        for name, sub in getattr(command, "commands", {}).items():
            yield from answering(sub, *names, name)
        if any("--json" in parameter.opts for parameter in command.params):
            yield names

    tried = [tuple(command) for command in FAILING]
    for names in answering(get_command(app)):
        assert any(command[: len(names)] == names for command in tried), names


def test_wrong_usage_leaves_it_empty(capsys, monkeypatch):
    code, out, err = left(["plan", "--json", "--no-such-option"], capsys, monkeypatch)
    assert (code, out) == (USAGE, "") and "--no-such-option" in err


def test_an_answer_that_is_printed_stays_the_only_one(capsys):
    def command():
        answers_in_json(True)
        print_json({"checks": 1})
        raise RunFailedError("a check failed")

    with pytest.raises(SystemExit) as leaving:
        exit_with_code(command)
    assert leaving.value.code == RUN_FAILED
    assert json.loads(capsys.readouterr().out) == {"checks": 1}


def program(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "ray_jobs.cli", *map(str, arguments)],
        stderr=subprocess.PIPE, text=True, check=False, timeout=120, **options,
    )  # fmt: skip


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's full device")
@pytest.mark.parametrize("buffered", ["", "1"])
def test_an_output_that_takes_nothing_is_named(buffered, tmp_path):
    environment = {**os.environ, "PYTHONUNBUFFERED": buffered}
    with Path("/dev/full").open("w") as full:
        for arguments in (["--version"], ["data", "generate", tmp_path / f"made{buffered}"]):
            done = program(*arguments, stdout=full, env=environment)
            assert done.returncode == USER_INPUT
            assert done.stderr.splitlines() == [
                "error: standard output cannot be written: No space left on device"
            ]
    assert (tmp_path / f"made{buffered}" / "dataset.json").is_file()


def test_a_reader_that_left_is_told_nothing(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    done = program("data", "generate", tmp_path / "made", stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (USER_INPUT, "")
