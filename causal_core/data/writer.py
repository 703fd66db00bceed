"""Writes canonical triplets to JSONL or Parquet. A file is whole or absent, never half written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from causal_core.data.schema import TRIPLET_SCHEMA, DataError, Triplet
from causal_core.files import whole_or_absent

_BATCH_ROWS = 4096


@contextmanager
def new_file(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """`whole_or_absent` for a file of data: through to the disk, and nothing lost by mistake.

    Raises:
        DataError: `path` exists and `overwrite` is false, or it cannot be written.
    """
    if path.exists() and not overwrite:
        raise DataError.in_file(path, "exists already; give --force to overwrite it")
    try:
        with whole_or_absent(path, durable=True) as temporary:
            yield temporary
    except OSError as problem:
        raise DataError.in_file(path, f"cannot be written: {problem.strerror}") from problem


def to_table(triplets: Iterable[Triplet]) -> pa.Table:
    """Triplets as one table in `TRIPLET_SCHEMA`."""
    rows = (triplet.to_row() for triplet in triplets)
    batches = []
    while chunk := list(islice(rows, _BATCH_ROWS)):
        batches.append(pa.RecordBatch.from_pylist(chunk, schema=TRIPLET_SCHEMA))
    return pa.Table.from_batches(batches, schema=TRIPLET_SCHEMA)


def write_triplets(table: pa.Table, path: Path, *, overwrite: bool = False) -> None:
    """Write a canonical table to `path`; the ending (`.jsonl` or `.parquet`) says how.

    Raises:
        DataError: an unknown ending, an existing file without `overwrite`, or a full disk.
    """
    kind = path.suffix.lower()
    if kind not in (".jsonl", ".parquet"):
        raise DataError.in_file(path, "unknown kind of file; write .jsonl or .parquet")
    with new_file(path, overwrite=overwrite) as temporary:
        if kind == ".parquet":
            pq.write_table(table, temporary, compression="zstd", row_group_size=16 * _BATCH_ROWS)
            return
        with temporary.open("w", encoding="utf-8", newline="\n") as handle:
            for batch in table.to_batches(max_chunksize=_BATCH_ROWS):
                for row in batch.to_pylist():
                    handle.write(json.dumps(row, ensure_ascii=False) + "\n")
