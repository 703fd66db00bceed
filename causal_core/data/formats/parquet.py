"""Parquet files, row by row, within bounds: two kilobytes can decode to gigabytes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from causal_core.data.formats.columns import columns_to_read, take_batches
from causal_core.data.opened import bomb, most_decoded
from causal_core.data.reading import BATCH_ROWS, Reading
from causal_core.data.schema import DataError
from causal_core.data.sources import Source
from causal_core.visible_text import quoted

_BATCH_BYTES = 16 * 2**20  # decoded, of one batch
# Of the metadata at a file's end, which takes about twelve times its length when parsed.
_MAX_FOOTER_BYTES = 16 * 2**20


def read_parquet(source: Source, reading: Reading) -> None:
    """Hands every row of a file to `reading`.

    Raises:
        DataError: the file as a whole cannot be rows: damaged, without a column that every row
            needs, of nested columns, or far larger than it looks.
    """
    take_batches(source, _batches(source, reading), reading)


def _batches(source: Source, reading: Reading) -> Iterator[pa.RecordBatch]:
    try:
        _refuse_long_footer(source)
        metadata = pq.read_metadata(source.path)
        if not metadata.num_rows:
            raise DataError.in_file(source.name, "the file has no rows")
        schema = metadata.schema.to_arrow_schema()
        columns = columns_to_read(source, schema, reading)
        texts = [name for name in columns if not pa.types.is_nested(schema.field(name).type)]
        # A text that a dictionary holds once stays once in memory, however many rows repeat it.
        with pq.ParquetFile(source.path, read_dictionary=texts) as file:
            end = 0
            for group in range(metadata.num_row_groups):
                start, end = end, end + metadata.row_group(group).num_rows
                wanted = _wanted(source, start, end)
                if not wanted:
                    continue
                rows = _batch_rows(source, metadata.row_group(group))
                batches = file.iter_batches(batch_size=rows, row_groups=[group], columns=columns)
                yield from _rows_of(batches, start, wanted)
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as problem:
        reason = f"cannot be read as Parquet: {quoted(str(problem), limit=200)}"
        raise DataError.in_file(source.name, reason) from problem


def _wanted(source: Source, start: int, end: int) -> range:
    """The rows of a group that are to be read, counted from the file's first."""
    if source.rows is None:
        return range(start, end)
    return range(max(start, source.rows.start), min(end, source.rows.stop))


def _rows_of(
    batches: Iterable[pa.RecordBatch], start: int, wanted: range
) -> Iterator[pa.RecordBatch]:
    """Batches of consecutive rows, the first of which is `start`, cut down to what is wanted."""
    for batch in batches:
        first, last = max(start, wanted.start), min(start + batch.num_rows, wanted.stop)
        if first < last:
            yield batch.slice(first - start, last - first)
        start += batch.num_rows
        if start >= wanted.stop:
            return


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


def _batch_rows(source: Source, group: pq.RowGroupMetaData) -> int:
    """Rows of a batch, such that the decoded batch stays small.

    By the group's own sums: pyarrow ends the process where the metadata of a column is damaged and
    is asked for (reading the column is an error instead).
    """
    unpacked = group.total_byte_size
    if unpacked > most_decoded(source.path):
        raise bomb(source.path, unpacked)
    average = max(1, unpacked // max(1, group.num_rows))
    return max(1, min(BATCH_ROWS, _BATCH_BYTES // average))
