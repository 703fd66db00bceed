"""Log records of workers: kept in the run directory, and said by the driver.

Ray would bring all that a worker prints to the driver, with its own colours and tracebacks in it.
So its way is closed (`ray_session`), and what workers have to say to the user takes this one.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from causal_core.files import LOG
from ray_jobs.console.logs import configure_logs, record_of
from ray_jobs.console.tail import Tail

log = logging.getLogger(__name__)

# Not what a driver keeps itself: it would read its own words for ever.
_KINDS = ("controller", "worker-*", "evaluation-*")
_SAID_BY_ALL_SECONDS = 10.0


def keep_log(form: Any, directory: Path, name: str, **context: Any) -> None:
    """In a process that is not the user's: its log records also go to `log/NAME.jsonl`.

    Args:
        form: `logging.format` of the config, for what Ray keeps of this process's output.
        directory: Of the run.
        context: Values that every record carries.
    """
    configure_logs(form, directory / LOG / f"{name}.jsonl", run=str(directory), **context)


class WorkerLog:
    """The driver's view: what workers log from now on is logged here."""

    def __init__(self, directory: Path) -> None:
        self._folder = directory / LOG
        self._tails = {path: Tail(path, from_start=False) for path in self._files()}
        self._said: dict[tuple[int, str], tuple[float, Any]] = {}  # when and by whom

    def look(self) -> None:
        """Logs what is new; called a few times per second."""
        for path in self._files():
            for line in self._tails.setdefault(path, Tail(path)).lines():
                record = record_of(line)
                if record is None:  # cut off by a crash
                    log.warning("%s: %s", path.name, line)
                elif not self._said_by_another(record, path):
                    logging.getLogger(record.name).handle(record)

    def _files(self) -> list[Path]:
        return sorted(p for kind in _KINDS for p in self._folder.glob(f"{kind}.jsonl"))

    def _said_by_another(self, record: logging.LogRecord, path: Path) -> bool:
        """Whether these are another worker's words of a moment ago: most of what one says, all do.

        Each worker's file has its own.
        """
        now = time.monotonic()
        words = record.levelno, record.getMessage()
        when, who = self._said.get(words, (-_SAID_BY_ALL_SECONDS, path))
        if who != path and now - when < _SAID_BY_ALL_SECONDS:
            return True
        recent = {w: s for w, s in self._said.items() if now - s[0] < _SAID_BY_ALL_SECONDS}
        self._said = {**recent, words: (now, path)}
        return False
