"""Results that stay: a line a data set, so that what was cut goes on with the next one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "results" / "peers.jsonl"
# What a result has to have in common with what is asked for to stand for it.
_SAME = ("data", "settings", "processor", "commit", "versions")


def read_results(path: Path = RESULTS) -> list[dict[str, Any]]:
    """In the order in which they came."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def add_result(result: Mapping[str, Any], path: Path = RESULTS) -> None:
    """Appends a line."""
    path.parent.mkdir(exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(result) + "\n")


def already(asked: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a result of the same data, settings, machine, commit and versions is there."""
    return any(all(result[name] == asked[name] for name in _SAME) for result in results)
