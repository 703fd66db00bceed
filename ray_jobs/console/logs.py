"""Log records of this program: readable lines, or one JSON object per line (`logging.format`)."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from ray_jobs.console.plain import printable

_ROOTS = ("causal_core", "ray_jobs", "tune_spaces")
_FIELDS = "fields"  # attribute of a record that holds its structured values


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
            "message": record.getMessage(),
            **self._context,
            **getattr(record, _FIELDS, {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class _TextFormatter(logging.Formatter):
    """Readable lines in which no name drives the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def configure_logs(form: Literal["text", "json"], **context: Any) -> None:
    """Sends this program's log records to stderr in the chosen form.

    Args:
        form: `logging.format` of the config.
        context: Values that every JSON record carries, e.g. `run` and `rank`.
    """
    handler = logging.StreamHandler(sys.stderr)
    if form == "json":
        handler.setFormatter(JsonFormatter(context))
    else:
        handler.setFormatter(_TextFormatter("%(levelname)s %(message)s"))
    for name in _ROOTS:
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
        logger.setLevel(logging.INFO)


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
