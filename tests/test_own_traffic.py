"""docs/own-traffic.md end to end: the commands of the page, as they stand there."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from causal_core.errors import ModelError
from causal_core.pretrained.demo_model import demo_model_directory
from causal_core.yaml_file import read_yaml
from ray_jobs.cli import main
from tests.command_line import command

pytestmark = pytest.mark.long

PAGE = Path(__file__).resolve().parents[1] / "docs" / "own-traffic.md"
CITIES = ("Rome", "Oslo", "Lima", "Cairo", "Paris", "Tokyo")
# What makes it quick; the page's config says everything else.
QUICK = {
    "lora": {"rank": 2, "alpha": 4},
    "train": {"global_batch": 4, "micro_batch_tokens": 2000, "max_steps": 2},
    "data": {"limit_validation": 4},
    "evaluation": {"max_new_tokens": 2, "limit": 3},
    "resources": {"workers": 0, "threads": 1},
    "logging": {"trackers": []},
}


def blocks(language: str) -> list[str]:
    """The page's code blocks in a language."""
    found = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    return found


def traffic(sample: dict[str, str], rows: int) -> list[dict[str, str]]:
    """Rows like the page's own, under several system prompts."""
    made = []
    for number in range(rows):
        city = CITIES[number % len(CITIES)]
        text = f"Parcel {number} was packed at noon. It goes to {city}. The driver has the key."
        desk = "ABCDEFGH"[number // len(CITIES) % 8]
        system = f"Desk {desk}: name the city."
        row = {"system_instruction": system, "benign_input": text, "benign_output": city}
        assert row.keys() == sample.keys()
        made.append(row)
    return made


def follow(place: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, dict]) -> str:
    """Does what the page says in a directory of its own; returns what was printed."""
    monkeypatch.chdir(place)
    (sample,) = map(json.loads, blocks("json"))
    rows = traffic(sample, 64)
    (place / "traffic.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (config,) = blocks("yaml")
    page = place / "page.yaml"
    page.write_text(config)
    tree = read_yaml(page)
    for name, values in settings.items():
        tree.setdefault(name, {}).update(values)
    (place / "own.yaml").write_text(json.dumps(tree))  # JSON is YAML
    printed = ""
    (commands,) = blocks("sh")
    for line in commands.strip().splitlines():
        program, *arguments = shlex.split(line)
        assert program == "causal"
        outcome = command(main, *arguments)
        assert outcome.returncode == 0, f"{line}\n{outcome.stdout}\n{outcome.stderr}"
        printed += outcome.stdout
    return printed


def judge(place: Path, printed: str) -> None:
    """The run is there, and it was trained and judged on rows of ours."""
    assert "No leaks between the splits" in printed and "Split by system prompt" in printed
    summary = json.loads((place / "runs/own/summary.json").read_text())
    sets = summary["evaluation"]["models"]["trained"]["sets"]
    assert sets["seen"]["witnesses"] > 0 and sets["novel"]["witnesses"] > 0
    novel = set(sets["novel"]["families"])
    about = json.loads((place / "data/own/dataset.json").read_text())
    assert novel and novel <= set(about["attack_families"]["test_novel"])
    assert not novel & set(about["attack_families"]["train"])
    assert (place / "runs/own/report.html").is_file()


def test_the_page_leads_from_traffic_to_a_report(tiny_model_directory, tmp_path, monkeypatch):
    settings = {**QUICK, "model": {"name_or_path": str(tiny_model_directory)}}
    judge(tmp_path, follow(tmp_path, monkeypatch, settings))


@pytest.mark.slow
def test_the_page_works_with_the_model_it_names(tmp_path, monkeypatch):
    try:
        demo_model_directory()
    except ModelError as error:
        pytest.skip(str(error))
    quick = {**QUICK, "resources": {"workers": 0}}
    judge(tmp_path, follow(tmp_path, monkeypatch, quick))
