"""What a measurement was taken on."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]


def commit() -> str:
    """The commit that is checked out."""
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=_ROOT, capture_output=True, text=True
    )
    return found.stdout.strip() or "unknown"


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Of installed packages."""
    return {name: version(name) for name in packages}
