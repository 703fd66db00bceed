"""Log records of this program: readable lines, or one JSON object per line (`logging.format`)."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Literal, TextIO

from causal_core.credentials import message_without_credentials
from ray_jobs.console.plain import printable

_ROOTS = ("causal_core", "ray_jobs", "tune_spaces")
_FIELDS = "fields"  # attribute of a record that holds its structured values
_FILE_BYTES = 5 * 2**20  # then a log file is renamed to NAME.1, and the one before is gone


class JsonFormatter(logging.Formatter):
    """`{"time", "level", "logger", "message", ...}`; extra values under their own names."""

    def __init__(self, context: Mapping[str, Any]) -> None:
        super().__init__()
        self._context = dict(context)

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": message_without_credentials(record.getMessage()),
            **self._context,
            **getattr(record, _FIELDS, {}),
        }
        if record.exc_info:
            trace = self.formatException(record.exc_info)
            entry["exception"] = message_without_credentials(trace)
        # All other control characters are escaped by JSON.
        return json.dumps(entry, default=str).replace("\x7f", "\\u007f")


class TextFormatter(logging.Formatter):
    """`LEVEL message`, with control characters made visible: a message may quote a file's text."""

    def format(self, record: logging.LogRecord) -> str:
        rank = getattr(record, _FIELDS, {}).get("rank", 0)
        who = f"worker {rank}: " if rank else ""
        return printable(f"{record.levelname} {who}{super().format(record)}")


class Stderr(logging.StreamHandler[TextIO]):
    """Writes to what sys.stderr is at that moment, so that a progress bar stays whole."""

    def __init__(self, form: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(form)

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, value: TextIO) -> None:
        """The base class sets it once, to the sys.stderr of that time."""


class LogFile(RotatingFileHandler):
    """A log file of bounded size, made with its first record. Where it cannot be written, that is
    said once and the program goes on."""

    def __init__(self, path: Path, form: logging.Formatter) -> None:
        super().__init__(path, maxBytes=_FILE_BYTES, backupCount=1, encoding="utf-8", delay=True)
        self.setFormatter(form)
        self._failed = False

    def _open(self) -> Any:
        Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
        return super()._open()

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._failed:
            self._failed = True
            print(f"the log {self.baseFilename} cannot be written: {error}", file=sys.stderr)


def configure_logs(form: Literal["text", "json"], file: Path | None = None, **context: Any) -> None:
    """Sends this program's log records to stderr in the chosen form.

    Args:
        form: `logging.format` of the config.
        file: Gets them too, one JSON object per line.
        context: Values that every JSON record carries, e.g. `run` and `rank`.
    """
    json_form = JsonFormatter(context)
    handlers: list[logging.Handler] = [Stderr(json_form if form == "json" else TextFormatter())]
    if file is not None:
        handlers.append(LogFile(file, json_form))
    for name in _ROOTS:
        logger = logging.getLogger(name)
        for earlier in logger.handlers:
            earlier.close()
        logger.handlers[:] = handlers
        logger.propagate = False
        logger.setLevel(logging.INFO)


def record_of(line: str) -> logging.LogRecord | None:
    """A log record of this program from its line in a file; None: the line is no such record."""
    try:
        entry = json.loads(line)
        name, message = str(entry.pop("logger")), str(entry.pop("message"))
        level = logging.getLevelNamesMapping()[str(entry.pop("level")).upper()]
        created = datetime.fromisoformat(entry.pop("time")).timestamp()
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None
    if name.partition(".")[0] not in _ROOTS:
        return None
    record = logging.LogRecord(name, level, "", 0, "%s", (message,), None)
    record.created = created
    setattr(record, _FIELDS, entry)
    return record


def event(logger: logging.Logger, message: str, **fields: Any) -> None:
    """Logs structured values to a JSON log; elsewhere the console shows the same in words."""
    if _is_json():
        logger.info(message, extra={_FIELDS: fields})


def say_error(kind: str, error: Exception) -> None:
    """The last line of a command that failed, in the form of its log."""
    if _is_json():
        logging.getLogger(__name__).error("%s: %s", kind, printable(error))
    else:
        print(f"{kind}: {printable(error)}", file=sys.stderr)


def _is_json() -> bool:
    handlers = logging.getLogger(__name__.partition(".")[0]).handlers
    return bool(handlers) and isinstance(handlers[0].formatter, JsonFormatter)
