"""`causal export`: what it says, and that a token is taken from the environment and told nobody."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from causal_core.export import build
from ray_jobs.cli import main
from tests.command_line import command

FACTS = {"kind": "adapter", "sentences": ["All the same.", "\x1b[2J[bold]x"]}


@pytest.fixture
def asked(monkeypatch):
    asked = []

    def export_run(run, out, options, say):
        say("working")
        asked.append((run, out, options))
        return FACTS

    monkeypatch.setattr(build, "export_run", export_run)
    return asked


@pytest.fixture
def hub(monkeypatch):
    calls = []

    class Api:
        def __init__(self, token):
            calls.append(("token", token))

        def create_repo(self, repository, **options):
            calls.append((repository, options))

        def upload_folder(self, **options):
            calls.append(("folder", options))
            if options["repo_id"].endswith(("refused", "cut")):
                kind = OSError if options["repo_id"].endswith("refused") else Exception
                raise kind("no: secret-token was sent\nand more")

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("causal_core.pretrained.hub.check_hub", lambda: None)  # it answers
    return calls


def test_it_tells_what_was_found_as_text(asked, tmp_path):
    outcome = command(main, "export", "run", tmp_path / "out", "--merge", "--dtype", "bfloat16")
    assert outcome.returncode == 0, outcome.stderr
    assert "All the same.\n\\x1b[2J[bold]x\nadapter: " in outcome.stdout
    [(run, out, options)] = asked
    assert run == Path("run").resolve() and out == tmp_path / "out"
    assert (options.merge, options.dtype, options.force) == (True, "bfloat16", False)
    as_json = command(main, "export", "run", tmp_path / "out", "--json")
    assert json.loads(as_json.stdout) == FACTS


def test_a_token_comes_from_the_environment_alone_and_is_never_told(
    asked, hub, tmp_path, monkeypatch
):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    command(main, "export", "run", tmp_path / "out")
    assert not hub  # off by default
    outcome = command(main, "export", "run", tmp_path / "out", "--push", "me/model")
    assert outcome.returncode == 1 and "HF_TOKEN" in outcome.stderr and len(asked) == 1
    monkeypatch.setenv("HF_TOKEN", "secret-token")
    outcome = command(main, "export", "run", tmp_path / "out", "--push", "me/model")
    assert outcome.returncode == 0 and "uploaded to me/model" in outcome.stdout
    assert hub[0] == ("token", "secret-token")
    assert hub[1] == ("me/model", {"private": True, "exist_ok": True})
    for refused in ("me/refused", "me/cut"):  # by the hub, and by whatever the client is made of
        outcome = command(main, "export", "run", tmp_path / "out", "--push", refused)
        assert outcome.returncode == 3 and "the export is whole" in outcome.stderr
        assert "secret-token" not in outcome.stderr + outcome.stdout
    assert "secret-token" not in json.dumps([str(a) for a in asked])
