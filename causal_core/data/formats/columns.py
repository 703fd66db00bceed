"""What Parquet and Arrow files have in common: which columns are read, and rows out of batches."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from causal_core.data.formats.layouts import layout_of
from causal_core.data.opened import bomb, most_decoded
from causal_core.data.problems import HOW_TO_MAP
from causal_core.data.reading import MAX_ROW_BYTES, Reading, characters
from causal_core.data.rules import Finding
from causal_core.data.schema import (
    ANSWERS,
    CANONICAL_NAME,
    INJECTION_FIELDS,
    INJECTIONS,
    REQUIRED_FIELDS,
    REQUIRED_INJECTION_FIELDS,
    DataError,
)
from causal_core.data.sources import Source
from causal_core.visible_text import quoted, shown


def columns_to_read(source: Source, schema: pa.Schema, reading: Reading) -> list[str]:
    """The columns that fields are read from, after what is wrong with the columns as such."""
    names = schema.names
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        reason = f"more than one column is named {quoted(repeated[0])}"
        raise DataError.in_file(source.name, reason)
    if reading.every_column:
        return [name for name in names if _is_nested(schema.field(name).type)]
    heads, layout = reading.columns.heads(), layout_of(names)
    mapped = {
        field
        for field, path in reading.columns.paths.items()
        if path in names or path.partition(".")[0] in names
    }
    foreign: set[str] = heads & set(names)
    if layout is not None and not {"benign_output", "injection_output"} & mapped:
        if not reading.convert:
            raise DataError.in_file(source.name, reading.foreign(layout))
        foreign |= {*layout.keys, *layout.also} & set(names)
    known = [name for name in names if name in CANONICAL_NAME or name in foreign]
    given = {CANONICAL_NAME[name] for name in known if name in CANONICAL_NAME} | mapped
    attacked = INJECTIONS not in given and bool(given & set(INJECTION_FIELDS))
    required = (*REQUIRED_FIELDS, *(REQUIRED_INJECTION_FIELDS if attacked else ()))
    if reading.unanswered:
        required = tuple(name for name in required if name not in ANSWERS)
    missing = [name for name in required if name not in given]
    if missing and (layout is None or not reading.convert):
        found = ", ".join(shown(name[:60]) for name in names[:10]) or "none"
        more = ", ..." if len(names) > 10 else ""
        reason = f"no column is named {', '.join(missing)}; its columns: {found}{more}"
        raise DataError.in_file(source.name, f"{reason}; {HOW_TO_MAP}")
    for name in known:
        found, expected = schema.field(name).type, "text"
        fits, field = _is_flat(found), CANONICAL_NAME.get(name)
        if field == INJECTIONS:
            fits, expected = _is_list_of_records(found), "a list of records of text"
        elif name in foreign:
            fits, expected = fits or _is_nested(found), "text, or lists and records of it"
        if not fits or (field in required and pa.types.is_null(found)):
            kind = quoted(str(found), 60)[1:-1]
            reason = f"the column {name} holds {kind}, expected {expected}"
            raise DataError.in_file(source.name, reason)
    # Unknown columns are named without being read: they may be large.
    for name in names:
        if name not in known:
            reading.warn(0, shown(name), "unknown column, ignored")
    return known


def take_batches(source: Source, batches: Iterable[pa.RecordBatch], reading: Reading) -> None:
    """Hands every row to `reading`, as long as they are no more than the file may decode to."""
    most, decoded = most_decoded(source.path), 0
    line = source.rows.start if source.rows is not None else 0
    for batch in batches:
        for row, damaged in _records(batch):
            line += 1
            size = sum(map(characters, row.values()))
            decoded += size
            if decoded > most:
                raise bomb(source.path, decoded)
            if size > MAX_ROW_BYTES:
                limit = f"{MAX_ROW_BYTES // 2**20} MiB"
                reading.refuse_unparsed(line, f"the row is longer than {limit}", "")
                continue
            text = json.dumps(row, default=repr) if reading.wants_text else ""
            reading.take(row, line, damaged, text)


def _is_flat(kind: pa.DataType) -> bool:
    """Whether a value of this type is as large as what it shows: no lists, no records."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return (
        pa.types.is_primitive(kind)
        or pa.types.is_null(kind)
        or kind
        in (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary())
    )


def _is_list_of_records(kind: pa.DataType) -> bool:
    if pa.types.is_null(kind):
        return True
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return False
    record = kind.value_type
    return pa.types.is_struct(record) and all(_is_flat(field.type) for field in record)


_DEEPEST = 4  # of lists in records in lists: chats whose turns have parts have as many


def _is_nested(kind: pa.DataType, depth: int = 0) -> bool:
    """Whether it is made of lists and records of flat values."""
    if _is_flat(kind):
        return True
    if depth >= _DEEPEST:
        return False
    if pa.types.is_struct(kind):
        return all(_is_nested(field.type, depth + 1) for field in kind)
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return is_list and _is_nested(kind.value_type, depth + 1)


# Items of all lists in a row. Of values that take no bytes a file can claim any number.
_MOST_ITEMS = 2**20


def _items(values: pa.Array) -> int:
    """How many items the lists in these values have, those in lists and records as well."""
    if pa.types.is_struct(values.type):
        return sum(map(_items, values.flatten()))
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        inner = values.flatten()
        return len(inner) if len(inner) > _MOST_ITEMS else len(inner) + _items(inner)
    return 0


def _records(batch: pa.RecordBatch) -> Iterator[tuple[dict[str, Any], list[Finding]]]:
    """The rows as plain values, each with what could not be decoded in it.

    All at once where nothing is wrong with any, which takes a third of the time.
    """
    try:
        small = sum(map(_items, batch.columns)) <= _MOST_ITEMS
        rows = batch.to_pylist() if small and sum(map(_size, batch.columns)) <= _AT_ONCE else None
    except (ValueError, OverflowError, MemoryError, pa.ArrowException):
        rows = None  # one of the rows holds it: found below
    if rows is not None:
        yield from ((row, []) for row in rows)
        return
    for index in range(batch.num_rows):
        yield _record(batch, index)


_AT_ONCE = 64 * 2**20  # bytes of a batch's values


def _size(values: pa.Array) -> float:
    """Bytes that values take when each is on its own, where that can be told."""
    kind = values.type
    if pa.types.is_struct(kind):
        return sum(map(_size, values.flatten()))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _size(values.flatten())
    if pa.types.is_dictionary(kind) and not pa.types.is_primitive(kind.value_type):
        lengths = pc.binary_length(values.dictionary)
        return float(pc.sum(lengths.take(values.indices)).as_py() or 0)
    return math.inf if kind == pa.string_view() else float(values.nbytes)


def _record(batch: pa.RecordBatch, index: int) -> tuple[dict[str, Any], list[Finding]]:
    """A row as plain values, with what could not be decoded in it."""
    row: dict[str, Any] = {}
    damaged: list[Finding] = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        field = CANONICAL_NAME.get(name, name)
        try:
            if (items := _items(column.slice(index, 1))) > _MOST_ITEMS:
                damaged.append((field, f"a list of {items:,} items"))
                continue
            row[name] = column[index].as_py()
        except UnicodeDecodeError as problem:
            damaged.append((field, f"not UTF-8: {problem.reason} at byte {problem.start + 1}"))
        # A date that Python does not have, or a place beyond a damaged dictionary.
        except (ValueError, OverflowError, MemoryError, pa.ArrowException) as problem:
            damaged.append((field, f"cannot be read: {quoted(str(problem))}"))
    return row, damaged
