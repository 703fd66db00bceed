"""Whether the extra is there: exit code 0, or 1 with how to get it."""

from __future__ import annotations

import importlib.util

EXTRA = ("trl", "prefix_grouper")
HOW_TO_GET = (
    "The peers are not installed. To measure against them: "
    ".venv/bin/python -m pip install -c constraints.txt -e '.[peers]'"
)


def check() -> None:
    """Raises `SystemExit`, with how to get the extra, where a package of it is missing."""
    if any(importlib.util.find_spec(name) is None for name in EXTRA):
        raise SystemExit(HOW_TO_GET)


if __name__ == "__main__":
    check()
