"""An empty argument, mostly an unset variable of a shell, is no path to the working directory."""

from __future__ import annotations

import pytest

from ray_jobs.cli import main
from tests.command_line import command


@pytest.mark.parametrize(
    "arguments",
    [
        ("data", "generate", ""),
        ("data", "generate", "  ", "--train", "4"),
        ("report", ""),
        ("export", "run", ""),
        ("evaluate", "run", "--out", ""),
        ("evaluate", "run", "--out="),
        ("plan", ""),
        ("",),
    ],
)
def test_an_empty_word_is_a_usage_error(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = command(main, *arguments)
    assert outcome.returncode == 2 and "an empty argument" in outcome.stderr
    assert "is a variable of the shell not set?" in outcome.stderr and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words", [("--system", ""), ("--system=",), ("--system", "s", "--input", "")]
)
def test_a_text_may_be_empty(words, tmp_path):
    given = words if "--input" in words else (*words, "--input", "text")
    outcome = command(main, "try", tmp_path, *given)
    assert outcome.returncode == 1 and "empty argument" not in outcome.stderr


def test_an_override_may_be_empty(tmp_path):
    outcome = command(main, "plan", tmp_path / "none.yaml", "model.revision=")
    assert outcome.returncode == 1 and "no such config file" in outcome.stderr
