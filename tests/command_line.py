"""The command line for tests: in this process through the real `main`, or as a program of its own.

In this process nothing heavy is imported again, which is most of the time that a command takes;
argument parsing, messages, streams and exit codes are those of the program.
"""

from __future__ import annotations

import contextlib
import io
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from unittest import mock

# Whose level and handlers a command sets for its whole process.
_LOGGERS = ("", "causal_core", "ray_jobs", "tune_spaces", "ray.train")


@dataclass(frozen=True)
class Outcome:
    """What a command left on the terminal, and its exit code."""

    returncode: int
    stdout: str
    stderr: str


def command(main: Callable[[], None], *arguments: object) -> Outcome:
    """Runs a console script's `main` in this process."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with (
        _loggers_kept(),
        mock.patch.object(sys, "argv", ["causal", *map(str, arguments)]),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        try:
            main()
        except SystemExit as leaving:
            code = leaving.code
        else:
            raise AssertionError("a console script leaves with an exit code")
    assert isinstance(code, int), code
    return Outcome(code, stdout.getvalue(), stderr.getvalue())


def program(*arguments: object) -> Outcome:
    """Runs Python with these arguments as a process, as a user's shell does."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


@contextlib.contextmanager
def _loggers_kept() -> Iterator[None]:
    """Gives the loggers back as they were, so that tests after this one capture records."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(log.level, log.propagate, list(log.handlers)) for log in loggers]
    try:
        yield
    finally:
        for log, (level, propagate, handlers) in zip(loggers, before, strict=True):
            log.setLevel(level)
            log.propagate = propagate
            log.handlers[:] = handlers
