"""Versions in cluster files agree with the constraints that the tests ran with."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
PINS = dict(
    line.split("==")
    for line in (REPOSITORY / "constraints.txt").read_text().splitlines()
    if "==" in line
)
PINS = {name.lower().replace("_", "-"): version for name, version in PINS.items()}


def direct_dependencies() -> dict[str, str]:
    """Name -> lower bound of pyproject's dependencies, dev extra included."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    found = [re.fullmatch(r"([\w.-]+)(?:\[.*\])?>=([\d.]+)", item) for item in wanted]
    assert all(found), wanted
    return {m[1].lower(): m[2] for m in found if m}


def test_every_direct_dependency_is_pinned_at_or_above_its_lower_bound():
    for name, bound in direct_dependencies().items():
        pin = tuple(int(x) for x in re.findall(r"\d+", PINS[name])[:3])
        assert pin >= tuple(int(x) for x in bound.split(".")), name


def test_the_runtime_environment_pins_what_the_constraints_pin():
    environment = yaml.safe_load((REPOSITORY / "cluster/runtime-env.yaml").read_text())
    packages = dict(item.split("==") for item in environment["pip"]["packages"])
    for name, version in packages.items():
        assert PINS[name.partition("[")[0].lower()] == version, name


def test_the_constraints_name_no_registry():
    text = (REPOSITORY / "constraints.txt").read_text()
    assert "://" not in text and "--" not in text and "@" not in text
