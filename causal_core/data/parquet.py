"""Parquet files, row by row, within bounds: two kilobytes can decode to gigabytes."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from causal_core.data.reading import BATCH_ROWS, MAX_ROW_BYTES, Reading, characters
from causal_core.data.rules import Finding
from causal_core.data.schema import (
    CANONICAL_NAME,
    INJECTIONS,
    REQUIRED_FIELDS,
    REQUIRED_INJECTION_FIELDS,
    DataError,
)
from causal_core.data.sources import Source
from causal_core.visible_text import quoted, shown

_BATCH_BYTES = 16 * 2**20  # decoded, of one batch
# Text compresses to a tenth or a fiftieth. What decodes to more than all of this is a bomb.
_BOMB_BYTES, _BOMB_RATIO = 128 * 2**20, 200
# Of the metadata at a file's end, which takes about twelve times its length when parsed.
_MAX_FOOTER_BYTES = 16 * 2**20


def read_parquet(source: Source, reading: Reading) -> None:
    """Hands every row of a file to `reading`.

    Raises:
        DataError: the file as a whole cannot be rows: damaged, without a column that every row
            needs, of nested columns, or far larger than it looks.
    """
    budget = max(_BOMB_BYTES, _BOMB_RATIO * source.path.stat().st_size)
    decoded = 0
    for line, (row, damaged) in enumerate(_records(source, reading), start=1):
        size = sum(map(characters, row.values()))
        decoded += size
        if decoded > budget:
            raise _bomb(source, decoded)
        if size > MAX_ROW_BYTES:
            limit = f"{MAX_ROW_BYTES // 2**20} MiB"
            reading.refuse_unparsed(line, f"the row is longer than {limit}", "")
            continue
        text = json.dumps(row, default=repr) if reading.wants_text else ""
        reading.take(row, line, damaged, text)


def _records(source: Source, reading: Reading) -> Iterator[tuple[dict[str, Any], list[Finding]]]:
    """Rows as plain values, each with what could not be decoded in it."""
    try:
        _refuse_long_footer(source)
        metadata = pq.read_metadata(source.path)
        names = metadata.schema.to_arrow_schema().names
        known = _known_columns(source, metadata, names)
        # Unknown columns are named without being read: they may be large.
        for name in names:
            if name not in CANONICAL_NAME:
                reading.warn(0, shown(name), "unknown column, ignored")
        texts = [name for name in known if CANONICAL_NAME[name] != INJECTIONS]
        # A text that a dictionary holds once stays once in memory, however many rows repeat it.
        with pq.ParquetFile(source.path, read_dictionary=texts) as file:
            for group in range(metadata.num_row_groups):
                rows = _batch_rows(source, metadata.row_group(group))
                for batch in file.iter_batches(batch_size=rows, row_groups=[group], columns=known):
                    for index in range(batch.num_rows):
                        yield _record(batch, index)
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as problem:
        reason = f"cannot be read as Parquet: {quoted(str(problem), limit=200)}"
        raise DataError.in_file(source.name, reason) from problem


def _refuse_long_footer(source: Source) -> None:
    """The file ends with the length of its metadata and four letters."""
    with source.path.open("rb") as file:
        file.seek(-min(8, source.path.stat().st_size), os.SEEK_END)
        length = int.from_bytes(file.read(4), "little")
    if length > _MAX_FOOTER_BYTES:
        raise DataError.in_file(
            source.name,
            f"cannot be read as Parquet: says that its metadata has {length:,} bytes; up to "
            f"{_MAX_FOOTER_BYTES:,} are read",
        )


def _known_columns(source: Source, metadata: pq.FileMetaData, names: list[str]) -> list[str]:
    """The columns to read, after what is wrong with the columns as such."""
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        reason = f"more than one column is named {quoted(repeated[0])}"
        raise DataError.in_file(source.name, reason)
    known = [name for name in names if name in CANONICAL_NAME]
    if not metadata.num_rows:
        raise DataError.in_file(source.name, "the file has no rows")
    given = {CANONICAL_NAME[name] for name in known}
    attack = () if INJECTIONS in given else REQUIRED_INJECTION_FIELDS
    missing = [name for name in (*REQUIRED_FIELDS, *attack) if name not in given]
    if missing:
        found = ", ".join(shown(name[:60]) for name in names[:10]) or "none"
        more = ", ..." if len(names) > 10 else ""
        reason = f"no column is named {', '.join(missing)}; its columns: {found}{more}"
        raise DataError.in_file(source.name, reason)
    schema = metadata.schema.to_arrow_schema()
    for name in known:
        found, expected = schema.field(name).type, "text"
        fits = _is_flat(found)
        if CANONICAL_NAME[name] == INJECTIONS:
            fits, expected = _is_list_of_records(found), "a list of records of text"
        if not fits:
            kind = quoted(str(found), 60)[1:-1]
            reason = f"the column {name} holds {kind}, expected {expected}"
            raise DataError.in_file(source.name, reason)
    return known


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


def _batch_rows(source: Source, group: pq.RowGroupMetaData) -> int:
    """Rows of a batch, such that the decoded batch stays small.

    By the group's own sums: pyarrow ends the process where the metadata of a column is damaged and
    is asked for (reading the column is an error instead).
    """
    unpacked = group.total_byte_size
    if unpacked > max(_BOMB_BYTES, _BOMB_RATIO * source.path.stat().st_size):
        raise _bomb(source, unpacked)
    average = max(1, unpacked // max(1, group.num_rows))
    return max(1, min(BATCH_ROWS, _BATCH_BYTES // average))


def _bomb(source: Source, decoded: int) -> DataError:
    return DataError.in_file(
        source.name,
        f"holds at least {decoded // 2**20:,} MiB of text in {source.path.stat().st_size:,} bytes: "
        "refused, as decoding it could fill the memory; write texts that are not repeated",
    )


def _record(batch: pa.RecordBatch, index: int) -> tuple[dict[str, Any], list[Finding]]:
    row: dict[str, Any] = {}
    damaged: list[Finding] = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            row[name] = column[index].as_py()
        except UnicodeDecodeError as problem:
            damaged.append(
                (CANONICAL_NAME[name], f"not UTF-8: {problem.reason} at byte {problem.start + 1}")
            )
        except (ValueError, OverflowError) as problem:  # a date that Python does not have
            damaged.append((CANONICAL_NAME[name], f"cannot be read: {quoted(str(problem))}"))
    return row, damaged
