"""`python -m ray_jobs.train --config FILE key.sub=value ...`: `causal train`, for jobs.

The same command with the same options; only the config file may stand behind `--config`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ray_jobs.cli import commands
from ray_jobs.console.exit_codes import exit_with_code


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command and leaves with the exit code of its outcome."""
    given = config_first(sys.argv[1:] if arguments is None else arguments)
    train = commands()["train"]
    exit_with_code(lambda: train.main(given, prog_name="python -m ray_jobs.train"))


def config_first(arguments: Sequence[str]) -> list[str]:
    """The arguments with the file behind `--config`, if there is one, in the first place."""
    words = [part for word in arguments for part in _cut(word)]
    if "--config" not in words:
        return words
    place = words.index("--config")
    return [*words[place + 1 : place + 2], *words[:place], *words[place + 2 :]]


def _cut(word: str) -> list[str]:
    return word.split("=", 1) if word.startswith("--config=") else [word]


if __name__ == "__main__":
    main()
