"""docs/walkthrough.md as it stands: from traffic to a model that plain transformers loads."""

from __future__ import annotations

import json
import re
import shlex
import time
from pathlib import Path

import pytest

from causal_core.errors import ModelError
from causal_core.pretrained.demo_model import demo_model_directory
from causal_core.yaml_file import read_yaml
from ray_jobs.cli import main
from tests.command_line import command

pytestmark = pytest.mark.long

PAGE = Path(__file__).resolve().parents[1] / "docs" / "walkthrough.md"
# What makes it quick where the model is a tiny one; the page's config says everything else.
TINY = {
    "lora": {"rank": 2, "alpha": 4},
    "train": {"global_batch": 4, "micro_batch_tokens": 2000, "max_steps": 1},
    "data": {"limit_validation": 4},
    "evaluation": {"max_new_tokens": 2, "limit": 2},
    "resources": {"threads": 1},
    "logging": {"trackers": []},
}


def blocks(language: str) -> list[str]:
    """The page's code blocks in a language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def follow(place: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, dict]) -> str:
    """Does what the page says in a directory of its own; returns what the commands printed."""
    monkeypatch.chdir(place)
    make_files, elsewhere = blocks("python")
    exec(make_files, {})
    [config] = blocks("yaml")
    (place / "page.yaml").write_text(config)
    tree = read_yaml(place / "page.yaml")
    for name, values in settings.items():
        tree.setdefault(name, {}).update(values)
    (place / "own.yaml").write_text(json.dumps(tree))  # JSON is YAML
    printed = ""
    [commands] = blocks("sh")
    for line in commands.strip().splitlines():
        program, *arguments = shlex.split(line)
        assert program == "causal"
        start = time.monotonic()
        outcome = command(main, *arguments)
        assert outcome.returncode == 0, f"{line}\n{outcome.stdout}\n{outcome.stderr}"
        told = f"$ {line}\n{outcome.stdout}[{time.monotonic() - start:.0f} s]\n"
        print(told)
        printed += told
    exec(elsewhere, {})
    return printed


def judge(place: Path, printed: str) -> None:
    """Each door was gone through."""
    assert "No leaks between the splits" in printed
    evaluation = json.loads((place / "runs/own/evaluations/0001/evaluation.json").read_text())
    sets = evaluation["models"]["trained"]["sets"]
    assert sets["sep"]["witnesses"] == 1 and sets["alpaca"]["witnesses"] >= 8
    assert "defended: " in printed and "Reloaded with plain transformers" in printed
    assert (place / "merged" / "guard" / "guard.safetensors").is_file()


def test_the_page_leads_through_every_door(tiny_model_directory, tmp_path, monkeypatch):
    settings = {**TINY, "model": {"name_or_path": str(tiny_model_directory)}}
    judge(tmp_path, follow(tmp_path, monkeypatch, settings))


@pytest.mark.slow
def test_the_page_works_with_the_model_it_names(tmp_path, monkeypatch):
    try:
        demo_model_directory()
    except ModelError as error:
        pytest.skip(str(error))
    printed = follow(tmp_path, monkeypatch, {})
    judge(tmp_path, printed)
    assert "8 of 8 greedy answers are those of the run" in printed
