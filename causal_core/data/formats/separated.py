"""CSV and its kind: a header, then a row a line, or several where a cell in quotes has them.

By Python's own reader: it knows the line of every row and goes on after one that is wrong, where
Arrow's refuses a whole block.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from typing import Any

from causal_core.data.formats.lines import lines
from causal_core.data.reading import MAX_ROW_BYTES, Reading
from causal_core.data.schema import DataError
from causal_core.data.sources import Source
from causal_core.visible_text import quoted

# Of a CSV a comma, what stands for it where commas are in numbers, or what spreadsheets copy.
_SEPARATORS = {".csv": ",;\t", ".tsv": "\t"}
SUFFIXES = tuple(suffix + packed for suffix in _SEPARATORS for packed in ("", ".gz"))
_MOST_COLUMNS = 10_000
_TRUTH = {"true": True, "false": False}


def read_separated(source: Source, reading: Reading) -> None:
    """Hands every row to `reading`; a cell that is empty is a field that the row does not have."""
    before = csv.field_size_limit(MAX_ROW_BYTES)  # one for all readers of the process
    try:
        _read(source, reading)
    finally:
        csv.field_size_limit(before)


def _read(source: Source, reading: Reading) -> None:
    texts = _Lines(source)
    first = next(texts, "")
    separators = _SEPARATORS[source.suffix.removesuffix(".gz")]
    separator = max(separators, key=first.count)
    if first.lstrip("\ufeff \t").startswith(("{", "[")):
        raise DataError.in_file(source.name, "begins as JSON does; name it .jsonl")
    # `a, b, c`: the blank is of the writing, not of the values (nor would quotes after it count).
    spaced = 0 < first.count(separator) == first.count(f"{separator} ")
    try:
        rows = csv.reader(
            texts.back(first), delimiter=separator, strict=True, skipinitialspace=spaced
        )
        names = _header(source, next(rows, []))
    except (csv.Error, _LongRowError) as problem:
        raise DataError.in_file(source.name, f"its first line is no header: {problem}") from None
    while True:
        texts.row_begins()
        line = texts.line + 1
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as problem:
            reading.refuse_unparsed(line, f"no row of {source.suffix[1:]}: {problem}", "")
        except _LongRowError as problem:
            reading.refuse_unparsed(line, f"{problem}; nothing is read from there on", "")
            return
        else:
            if cells:
                _take(names, cells, line, reading)


def _header(source: Source, names: list[str]) -> list[str]:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        reason = f"more than one column is named {quoted(repeated[0])}"
        raise DataError.in_file(source.name, reason)
    if len(names) < 2:
        found = f"is {quoted(names[0])}" if names else "is empty"
        reason = (
            f"its first line {found}: it has to name the fields, with a comma, a semicolon or a "
            "tab between them"
        )
        raise DataError.in_file(source.name, reason)
    if len(names) > _MOST_COLUMNS:
        raise DataError.in_file(
            source.name, f"its first line names {len(names):,} columns: it has to name the fields"
        )
    return [name.strip() for name in names]


def _take(names: list[str], cells: list[str], line: int, reading: Reading) -> None:
    text = ",".join(cells) if reading.wants_text else ""
    if len(cells) != len(names):
        reason = f"{len(cells):,} cells in a row of {len(names):,} columns"
        reading.refuse_unparsed(line, reason, text)
        return
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        raw = text.encode(errors="surrogateescape").decode(errors="backslashreplace")
        reading.refuse_unparsed(line, "not UTF-8", raw)
        return
    row: dict[str, Any] = {name: cell for name, cell in zip(names, cells, strict=True) if cell}
    flag = row.get("has_trigger_words")
    if flag is not None:
        row["has_trigger_words"] = _TRUTH.get(flag.lower(), flag)
    reading.take(row, line, [], text)


class _LongRowError(Exception):
    """A row that goes on and on, as after a quote that is never closed."""


class _Lines(Iterator[str]):
    """Lines of text, counted; what is no UTF-8 in them stays as half surrogates."""

    def __init__(self, source: Source) -> None:
        self._lines = lines(source)
        self._first: list[str] = []
        self._row_bytes = 0
        self.line = 0

    def back(self, line: str) -> _Lines:
        """Puts the line back that was just read."""
        self._first, self.line, self._row_bytes = [line], 0, 0
        return self

    def row_begins(self) -> None:
        self._row_bytes = 0

    def __next__(self) -> str:
        if self._first:
            text = self._first.pop()
        else:
            data = next(self._lines)
            if data is None:
                raise _LongRowError(f"the line is longer than {MAX_ROW_BYTES // 2**20} MiB")
            text = data.decode(errors="surrogateescape")
        self.line += 1
        self._row_bytes += len(text)
        if self._row_bytes > MAX_ROW_BYTES:
            raise _LongRowError(f"the row is longer than {MAX_ROW_BYTES // 2**20} MiB")
        return text
