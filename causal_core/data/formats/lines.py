"""JSON lines, one row each: whatever a line holds, it is a row or a problem of that line."""

from __future__ import annotations

import json
from collections.abc import Iterator

from causal_core.data.formats.objects import Object, take_value
from causal_core.data.opened import opened
from causal_core.data.reading import MAX_ROW_BYTES, Reading
from causal_core.data.schema import DataError
from causal_core.data.sources import Source
from causal_core.visible_text import quoted


def read_lines(source: Source, reading: Reading) -> None:
    """Hands every line of a file that is not blank to `reading`."""
    for line, data in enumerate(lines(source), start=1):
        if data is None:
            limit = f"{MAX_ROW_BYTES // 2**20} MiB"
            reading.refuse_unparsed(line, f"the line is longer than {limit}", "")
        elif data.strip():
            _read_line(data, line, reading)


def lines(source: Source) -> Iterator[bytes | None]:
    """The lines of a file without its byte order mark, None for one that is too long to be a row.

    Raises:
        DataError: the file cannot be read to its end.
    """
    start = b"\xef\xbb\xbf"
    try:
        with opened(source.path) as handle:
            while data := handle.readline(MAX_ROW_BYTES):
                data, start = data.removeprefix(start), b""
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
        value = json.loads(text, object_pairs_hook=Object)
    except json.JSONDecodeError as problem:
        reading.refuse_unparsed(line, f"not JSON: {problem.msg} (column {problem.colno})", text)
    except RecursionError:
        reading.refuse_unparsed(line, "nested too deeply", text)
    except ValueError as problem:  # an integer of more digits than Python converts
        reading.refuse_unparsed(line, f"not usable JSON: {quoted(str(problem))}", text)
    else:
        take_value(value, line, text, reading)
