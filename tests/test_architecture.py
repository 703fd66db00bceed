"""The direction of imports, and what must not be in the code at all."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
ALLOWED = {
    "causal_core": {"causal_core"},
    "ray_jobs": {"causal_core", "ray_jobs"},
    "tune_spaces": {"causal_core", "ray_jobs", "tune_spaces"},
}
FILES = [p for package in ALLOWED for p in (REPOSITORY / package).rglob("*.py")]


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add((node.module or "").partition(".")[0])
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_imports_go_one_way(path):
    package = path.relative_to(REPOSITORY).parts[0]
    ours = imported(path) & set(ALLOWED)
    assert ours <= ALLOWED[package], f"{path} imports {ours - ALLOWED[package]}"
    if package == "causal_core":
        assert "ray" not in imported(path), "causal_core never imports ray"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_no_pickle_and_no_remote_code(path):
    text = path.read_text(encoding="utf-8")
    assert not imported(path) & {"pickle", "dill", "cloudpickle", "shelve", "marshal"}
    assert "torch.save(" not in text and "torch.load(" not in text
    assert "trust_remote_code=True" not in text
