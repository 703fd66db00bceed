"""`causal try`: two answers as they come, and nothing of them drives the terminal."""

from __future__ import annotations

import io
import json

import pytest

from causal_core import inference
from ray_jobs import try_command
from ray_jobs.cli import main
from tests.command_line import command

HOSTILE = "\x1b[2Jred [bold]x[/bold]\nsecond line \u202e"
PIECES = {
    False: ["no ", "defence"],
    True: ["\x1b[2Jred ", "[bold]x[/bold]\nsec", "ond line \u202e"],
}


class Model:
    def stream(self, system, user_input, context=None, *, max_new_tokens, defended):
        self.asked = (system, user_input, context, max_new_tokens)
        return iter(PIECES[defended])


@pytest.fixture
def model(monkeypatch):
    model = Model()
    monkeypatch.setattr(inference, "load", lambda run, **_: model)
    return model


def test_in_a_pipe_every_line_says_whose_it_is(model):
    outcome = command(main, "try", "run", "--system", "S", "--input", "I", "--max-new-tokens", 7)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.splitlines() == [
        r"defended: \x1b[2Jred [bold]x[/bold]",
        "base: no defence",
        r"defended: second line \u202e",
    ]
    assert model.asked == ("S", "I", None, 7)


def test_json_holds_the_answers_as_they_are_and_the_input_comes_from_a_pipe(model, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("from a pipe\n"))
    outcome = command(
        main, "try", "run", "--system", "S", "--context", "C", "--input", "-", "--json"
    )
    found = json.loads(outcome.stdout)
    assert found["answers"] == {"base": "no defence", "defended": HOSTILE}
    assert model.asked[:3] == ("S", "from a pipe", "C") and "\x1b" not in outcome.stdout


def test_what_comes_from_a_pipe_is_utf_8_whatever_the_locale(model, monkeypatch):
    def piped(data):
        # As Python opens it under LANG=C: what is no text would become half surrogates.
        stream = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8", errors="surrogateescape")
        monkeypatch.setattr("sys.stdin", stream)
        return command(main, "try", "run", "--system", "S")

    refused = piped(b"caf\xe9")
    assert refused.returncode == 1 and "no UTF-8 text" in refused.stderr
    assert piped("\ufeffcafé\r\n".encode()).returncode == 0
    assert model.asked[1] == "café"


def test_at_a_terminal_the_answers_stand_beside_each_other(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "120")
    both = ((name, p) for name, d in try_command.NAMES.items() for p in PIECES[d])
    try_command._in_columns(both)
    shown = capsys.readouterr().out
    assert "no defence" in shown and r"\x1b[2Jred [bold]x[/bold]" in shown
    assert "\x1b" not in shown and "\u202e" not in shown


def test_a_run_without_a_model_is_told_in_one_line(tmp_path):
    outcome = command(main, "try", tmp_path, "--system", "S", "--input", "I")
    assert outcome.returncode == 1 and "no trained model in it" in outcome.stderr
