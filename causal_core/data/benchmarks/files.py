"""Files of others as plain values: JSON, or one value a line, or a table of any kind that rows are
read from. Whatever they hold, they end in records or in one clear line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from causal_core.data.formats.table import FORMATS
from causal_core.data.opened import opened
from causal_core.data.reading import Reading
from causal_core.data.rules import Finding
from causal_core.data.schema import DataError
from causal_core.data.sources import (
    COMPRESSED_SUFFIXES,
    TEXT_SUFFIXES,
    Source,
    files_of,
    resolve_sources,
    split_selector,
    suffix_of,
)
from causal_core.files import checked_file
from causal_core.visible_text import shown

# The largest of these test sets has 14 MB. Brackets take a hundred times their length when parsed.
MAX_FILE_BYTES = 32 * 2**20
_KEYS_SHOWN = 10

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Content:
    """What a file holds: one JSON value, or the list of those on its lines."""

    name: str
    value: Any

    def records(self) -> list[Record]:
        """Its objects; one object is a list of one.

        Raises:
            DataError: something else than objects, or nothing.
        """
        value = [self.value] if isinstance(self.value, dict) else self.value
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise DataError.in_file(self.name, "holds no list of JSON objects")
        if not value:
            raise DataError.in_file(self.name, "the file has no rows")
        return value

    def has(self, *keys: str) -> bool:
        """Whether its first object has all of these fields."""
        first = self.value
        if isinstance(first, list):
            first = first[0] if first else None
        return isinstance(first, dict) and all(key in first for key in keys)

    def fields(self) -> str:
        """The fields of its first object, for a message."""
        first = self.value[0] if isinstance(self.value, list) and self.value else self.value
        if not isinstance(first, dict) or not first:
            return "none"
        names = [shown(str(key)[:60]) for key in list(first)[:_KEYS_SHOWN]]
        return ", ".join(names) + (", ..." if len(first) > _KEYS_SHOWN else "")

    def wrong_layout(self, benchmark: str, wanted: str) -> DataError:
        """The error for a file in none of a test set's layouts."""
        reason = f"is no file of {benchmark}: it has {wanted}; found the fields {self.fields()}"
        return DataError.in_file(self.name, reason)


class _Records(Reading):
    """Rows as they are, whatever their fields are called."""

    every_column = True

    def __init__(self) -> None:
        super().__init__()
        self.records: list[dict[str, Any]] = []

    def take(self, raw: Record, line: int, extra: Sequence[Finding], text: str) -> None:
        if extra:
            self.refuse_unparsed(line, f"{extra[0][0]}: {extra[0][1]}", text)
        self.records.append({key: value for key, value in raw.items() if value is not None})

    def refuse_unparsed(self, line: int, reason: str, text: str) -> None:
        raise DataError.in_file(f"{self.source.name}:{line}", reason)


def read_contents(given: str | Path) -> list[Content]:
    """The contents of a file, or of all files that a pattern, a store or a saved data set has.

    Raises:
        DataError: no such file, a larger one than any test set is, no UTF-8, or no JSON.
    """
    name, _ = split_selector(given)
    try:
        found = files_of(name)
    except OSError as problem:
        raise DataError.in_file(name, str(problem.strerror)) from problem
    return [_content(file.path) for file in found]


def _content(path: Path) -> Content:
    suffix = suffix_of(path)
    if suffix not in FORMATS or suffix in (*TEXT_SUFFIXES, *COMPRESSED_SUFFIXES):
        return _of_text(path)  # whatever it is called
    [source] = resolve_sources([path], tuple(FORMATS))
    return Content(source.name, _table(source))


def _table(source: Source) -> list[dict[str, Any]]:
    if source.path.stat().st_size > MAX_FILE_BYTES:
        raise DataError.in_file(source.name, f"has more than {MAX_FILE_BYTES:,} bytes")
    reading = _Records()
    reading.start(source)
    FORMATS[source.suffix](source, reading)
    return reading.records


def _of_text(path: Path) -> Content:
    name = str(path)
    try:
        checked_file(path)
        with opened(path) as handle:
            data = handle.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise DataError.in_file(name, f"has more than {MAX_FILE_BYTES:,} bytes")
    except FileNotFoundError:
        raise DataError.in_file(name, "no such file") from None
    except OSError as problem:
        raise DataError.in_file(name, f"cannot be read: {problem.strerror}") from problem
    if data.startswith(b"PAR1"):
        reason = "is a Parquet file; name it .parquet"
        raise DataError.in_file(name, reason)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        reason = f"not UTF-8: {problem.reason} at byte {problem.start + 1}"
        raise DataError.in_file(name, reason) from problem
    if not text.strip():
        raise DataError.in_file(name, "the file is empty")
    try:
        return Content(name, json.loads(text))
    except json.JSONDecodeError as problem:
        if problem.msg != "Extra data":
            raise _no_json(name, problem) from problem
    except (RecursionError, ValueError) as problem:
        raise _no_json(name, problem) from problem
    return Content(name, _lines(name, text))


def _lines(name: str, text: str) -> list[Any]:
    values = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                values.append(json.loads(line))
            except (RecursionError, ValueError) as problem:
                raise _no_json(f"{name}:{number}", problem) from problem
    return values


def _no_json(place: str, problem: Exception) -> DataError:
    if isinstance(problem, RecursionError):
        return DataError.in_file(place, "nested too deeply")
    if isinstance(problem, json.JSONDecodeError):
        where = f"line {problem.lineno}, column {problem.colno}"
        return DataError.in_file(place, f"not JSON: {problem.msg} ({where})")
    return DataError.in_file(place, "not usable JSON: a number of too many digits")


def text_of(record: Record, *keys: str) -> str | None:
    """The first of these fields that holds text: a text, or a list of its lines."""
    for key in keys:
        value = record.get(key)
        if isinstance(value, Sequence) and not isinstance(value, str | bytes):
            value = "\n".join(value) if all(isinstance(line, str) for line in value) else None
        if isinstance(value, str) and value.strip():
            return value
    return None
