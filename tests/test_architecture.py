"""The direction of imports, and what must not be in the code at all."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("causal_core", "ray_jobs", "tune_spaces")  # each may import those before it

TOP_LEVEL = {
    ".ci", ".gitignore", ".pre-commit-config.yaml", ".rayignore", "CHANGELOG.md", "CONTRIBUTING.md",
    "LICENSE", "Makefile", "README.md", "benchmarks", "causal_core", "cluster", "configs",
    "constraints.txt", "docs", "pyproject.toml", "ray_jobs", "tests", "tune_spaces",
}  # fmt: skip

# The rooms of causal_core in the order of the data; each imports only itself and rooms before it.
# The files of the ground are one room, beside each other.
GROUND = (
    "errors", "credentials", "visible_text", "device", "config", "config_file", "config_names",
    "config_lora", "config_loss", "config_data", "config_reference", "config_sections",
    "yaml_file", "amounts", "files", "remembered", "openmp", "quantised",
)  # fmt: skip
ROOMS = (
    "data", "generator", "pretrained", "tokens", "trees", "model", "loss", "engines", "step",
    "checkpoints", "memory", "evaluation", "attack", "run", "report",
    "inference", "export",
)  # fmt: skip


def module_name(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(p): p for package in PACKAGES for p in (REPOSITORY / package).rglob("*.py")}


@cache
def imported(path: Path) -> tuple[str, ...]:
    """Full names of everything that a file imports, lazily or not, for types or not."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            found += (f"{node.module}.{alias.name}" for alias in node.names)
    return tuple(found)


def edges(modules: Mapping[str, Path]) -> dict[str, set[str]]:
    """Which of the modules each of them imports."""
    found: dict[str, set[str]] = {}
    for name, path in modules.items():
        parents = {i: i.rpartition(".")[0] for i in imported(path)}
        found[name] = {i if i in modules else parent for i, parent in parents.items()}
        found[name] &= set(modules) - {name}
    return found


@cache
def code() -> dict[str, set[str]]:
    """`edges` of all packages: once, and only where a test asks, not where tests are collected."""
    return edges(FILES)


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Modules that import each other, directly or through others, in the order of the circle."""
    finished: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in finished:
            return []
        for other in sorted(graph[name]):
            if found := visit(other, [*path, name]):
                return found
        finished.add(name)
        return []

    return next((found for name in graph if (found := visit(name, []))), [])


def room(module: str) -> int:
    """The number of a module's room in causal_core, the ground being -1."""
    part = module.split(".")[1]
    assert part in (*GROUND, *ROOMS), f"{module} is in no room of tests/test_architecture.py"
    return -1 if part in GROUND else ROOMS.index(part)


def test_imports_go_one_way():
    wrong: list[str] = []
    for name, path in FILES.items():
        package = name.partition(".")[0]
        later = PACKAGES[PACKAGES.index(package) + 1 :]
        tops = {i.partition(".")[0] for i in imported(path)}
        # causal_core never imports ray.
        above = {*later, "tests", "benchmarks", *(["ray"] if package == "causal_core" else [])}
        wrong += (f"{name} imports {other}" for other in sorted(tops & above))
        if package == "causal_core" and name != package:
            inside = (other for other in code()[name] if other.startswith("causal_core."))
            back = [other for other in inside if room(other) > room(name)]
            wrong += (f"{name} reaches back to {other}" for other in sorted(back))
    assert not wrong


def test_no_two_modules_import_each_other():
    assert not circle(code())


def test_a_circle_would_be_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["b", "c", "b"]
    assert not circle({"a": {"b", "c"}, "b": {"c"}, "c": set()})


def test_no_pickle_and_no_remote_code():
    modules = {"pickle", "dill", "cloudpickle", "shelve", "marshal"}
    words = ("torch.save(", "torch.load(", "trust_remote_code=True")
    wrong: list[str] = []
    for name, path in FILES.items():
        tops = {i.partition(".")[0] for i in imported(path)}
        text = path.read_text(encoding="utf-8")
        found = [*sorted(tops & modules), *(word for word in words if word in text)]
        wrong += (f"{name}: {what}" for what in found)
    assert not wrong


def test_the_top_level_holds_what_belongs_there_and_nothing_else():
    """What a command left in a checkout is not to be committed with it."""
    listed = subprocess.run(
        ["git", "ls-files"],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("no git checkout")
    assert {name.partition("/")[0] for name in listed.stdout.splitlines()} == TOP_LEVEL
