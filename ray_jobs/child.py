"""Processes of this package's own modules, to which this one speaks in lines of JSON."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

_PACKAGES = Path(__file__).resolve().parents[1]


def started(module: str, *options: str, printed: IO[Any]) -> subprocess.Popen[str]:
    """A process that runs a module, with pipes for what it is told and what it answers.

    Args:
        printed: A file for what it prints to stderr.
    """
    paths = [str(_PACKAGES), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(  # noqa: S603 - this package's own module
        # -P: not what lies in the working directory.
        [sys.executable, "-P", "-m", module, *options],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=printed,
        text=True,
        start_new_session=True,  # Ctrl-C is this process's, which ends that one
    )


def tell(process: subprocess.Popen[str], what: Any) -> None:
    """A line for it; nothing where it has died, as the answer that does not come says."""
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps(what) + "\n")
        process.stdin.flush()


def close_pipes(process: subprocess.Popen[str]) -> None:
    """Of a process that has ended."""
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        with contextlib.suppress(BrokenPipeError):
            pipe.close()
