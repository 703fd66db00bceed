"""What Ray itself says goes to files in the run directory: `log/ray.log`, `log/failure.log`.

Its warnings and tracebacks are about its processes, which no user of this program has started. They
are at hand when a run failed through one of them.
"""

from __future__ import annotations

import contextlib
import logging
import re
import traceback
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from causal_core.files import LOG
from ray_jobs.console.logs import LogFile
from ray_jobs.console.plain import printable

log = logging.getLogger(__name__)

_RAY_LOG, _FAILURE_LOG = "ray.log", "failure.log"
FORM = "%(asctime)s %(levelname)s %(message)s"
_LOGGERS = ("ray", "ray.train")  # `quiet_libraries` lets nothing of Train pass to Ray's
_GUESSES = " Some common causes include:"  # half a page of them
_NO_STORAGE = "Unable to set up cluster storage"  # followed by advice on Ray's own options
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@contextlib.contextmanager
def ray_says_into(directory: Path) -> Iterator[None]:
    """What Ray says in this process during a `with` block goes to the run's `log/ray.log`."""
    from ray._private import worker

    file = _RayLog(directory / LOG / _RAY_LOG, logging.Formatter(FORM))
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(logger.handlers[:], logger.propagate, logger.level) for logger in loggers]
    # Ray prints messages of the cluster ("a worker died") straight to stdout, in yellow, whatever
    # `log_to_driver` says; there is no public way to have them elsewhere.
    printing = worker.print_to_stdstream

    def keep(data: Mapping[str, Any], ignore_prefix: bool) -> None:
        for line in data["lines"]:
            logging.getLogger("ray").warning("(%s) %s", data["pid"], line)

    for logger in loggers:
        logger.handlers[:], logger.propagate = [file], False
        logger.setLevel(logging.WARNING)
    worker.print_to_stdstream = keep
    try:
        yield
    finally:
        worker.print_to_stdstream = printing
        for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
            logger.handlers[:], logger.propagate = handlers, propagate
            logger.setLevel(level)
        file.close()


class _RayLog(LogFile):
    """Readable whatever formatter Ray gives to the handlers of its loggers when it starts."""

    def format(self, record: logging.LogRecord) -> str:
        return readable(super().format(record))


def failure_kept(directory: Path, error: BaseException) -> str:
    """Puts an error of Ray, with all of its tracebacks, into the run's `log/failure.log`.

    Returns:
        Where it is, for a message.
    """
    return account_kept(directory, "".join(traceback.format_exception(error)), "Ray's")


def account_kept(directory: Path, account: str, whose: str = "the worker's") -> str:
    """`failure_kept` for an error in words already."""
    path = directory / LOG / _FAILURE_LOG
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            file.write(f"{now}\n{readable(account)}\n")
    except OSError as refused:  # a full disk may be why the run failed
        log.warning("%s", readable(account))
        return f"{whose} full error is above, as {path} cannot be written: {refused.strerror}"
    return f"{whose} full error is in {path}"


def readable(text: str) -> str:
    """Text of Ray without its colours, and with other control characters made visible."""
    return printable(_COLOUR.sub("", text))


def root_cause(error: BaseException) -> str:
    """The last line of an error of Ray, which tells of what its traceback ended in."""
    said = readable(str(error))
    if _NO_STORAGE in said:
        return (
            "a worker does not find the run's folder where checkpoints are stored: it was removed "
            "or unmounted, or another node does not have it (checkpoint.storage names a place that "
            "all nodes reach)"
        )
    lines = [line for line in said.splitlines() if line.strip()]
    return lines[-1].partition(_GUESSES)[0].strip().rstrip(".") if lines else type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of an error of Ray, which says what happened to one of its processes."""
    return (readable(str(error)).strip().splitlines() or [type(error).__name__])[0]
