"""JSON lines, one row each: whatever a line holds, it is a row or a problem of that line."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from causal_core.data.reading import MAX_ROW_BYTES, Reading
from causal_core.data.rules import Finding
from causal_core.data.schema import CANONICAL_NAME, INJECTIONS, DataError
from causal_core.data.sources import Source
from causal_core.visible_text import quoted, shown


def read_lines(source: Source, reading: Reading) -> None:
    """Hands every line of a file that is not blank to `reading`."""
    for line, data in enumerate(_lines(source), start=1):
        if data is None:
            limit = f"{MAX_ROW_BYTES // 2**20} MiB"
            reading.refuse_unparsed(line, f"the line is longer than {limit}", "")
        elif data.strip():
            _read_line(data.removeprefix(b"\xef\xbb\xbf") if line == 1 else data, line, reading)


class _Object(dict[str, Any]):
    """A JSON object that remembers which of its keys were repeated."""

    __slots__ = ("repeated",)

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.repeated: Sequence[str] = ()
        if len(self) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            self.repeated = [key for key, count in counts.items() if count > 1]


def _lines(source: Source) -> Iterator[bytes | None]:
    """The lines of a file, None for one that is too long to be a row."""
    try:
        with source.path.open("rb") as handle:
            while data := handle.readline(MAX_ROW_BYTES):
                if len(data) < MAX_ROW_BYTES or data.endswith(b"\n"):
                    yield data
                    continue
                while data and not data.endswith(b"\n"):
                    data = handle.readline(MAX_ROW_BYTES)
                yield None
    except OSError as problem:
        raise DataError.in_file(source.name, f"cannot be read: {problem.strerror}") from problem


def _read_line(data: bytes, line: int, reading: Reading) -> None:
    try:
        text = data.decode()
    except UnicodeDecodeError as problem:
        reason = f"not UTF-8: {problem.reason} at byte {problem.start + 1}"
        reading.refuse_unparsed(line, reason, data.decode(errors="backslashreplace").rstrip("\r\n"))
        return
    text = text.rstrip("\r\n")
    try:
        value = json.loads(text, object_pairs_hook=_Object)
    except json.JSONDecodeError as problem:
        reading.refuse_unparsed(line, f"not JSON: {problem.msg} (column {problem.colno})", text)
        return
    except RecursionError:
        reading.refuse_unparsed(line, "nested too deeply", text)
        return
    except ValueError as problem:  # an integer of more digits than Python converts
        reading.refuse_unparsed(line, f"not usable JSON: {quoted(str(problem))}", text)
        return
    if not isinstance(value, _Object):
        reading.refuse_unparsed(line, "not a JSON object", text)
        return
    repeated = _repeated(value)
    injections = value.get(INJECTIONS)
    for number, injection in enumerate(injections if isinstance(injections, list) else ()):
        if isinstance(injection, _Object):
            repeated += _repeated(injection, f"{INJECTIONS}[{number}].")
    reading.take(value, line, repeated, text)


def _repeated(value: _Object, place: str = "") -> list[Finding]:
    return [
        (place + CANONICAL_NAME.get(key, shown(key)), f"the key {quoted(key)} is given twice")
        for key in value.repeated
    ]
