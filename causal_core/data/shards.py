"""Triplet files as shards: rows of one file from a fixed place on, checked, one shard at a time.

Which rows a shard has depends on its file alone, so the same shards come of a file that is read
from its beginning and of one of which only a part is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from causal_core.data.column_paths import ColumnPaths
from causal_core.data.formats.table import FORMATS
from causal_core.data.problems import Problems
from causal_core.data.reader import read_into
from causal_core.data.reading import Reading, Rows
from causal_core.data.schema import DataError
from causal_core.data.sources import Source, resolve_sources

SHARD_ROWS = 4096  # of the file; the shard has those of them that are wanted


class Shard(NamedTuple):
    """Rows of one file that are tokenised and kept together."""

    file: int  # its place among all files that are read
    number: int  # in the file, from 0
    batches: list[pa.RecordBatch]  # in `TRIPLET_SCHEMA`

    @property
    def rows(self) -> int:
        return sum(batch.num_rows for batch in self.batches)


@dataclass
class _ShardedRows(Rows):
    """Hands shards on instead of keeping their rows."""

    on_shard: Callable[[Shard], None] = field(kw_only=True)
    file: int = 0
    number: int = 0

    def add(self, row: Mapping[str, Any], line: int) -> None:
        number = (line - 1) // SHARD_ROWS
        if number != self.number:
            self._close()
            self.number = number
        super().add(row, line)

    def end_file(self) -> None:
        self._close()
        self.file, self.number = self.file + 1, 0

    def _close(self) -> None:
        self.flush()
        if self.batches:
            self.on_shard(Shard(self.file, self.number, self.batches))
            self.batches = []


@dataclass(frozen=True)
class Files:
    """What is read and how, as `read_triplets` has it."""

    paths: Sequence[str]
    columns: ColumnPaths
    unanswered: bool = False

    def sources(self) -> list[Source]:
        """The files in their order (`DataError` where one cannot be read)."""
        return resolve_sources(self.paths, tuple(FORMATS))


def read_shards(files: Files, on_shard: Callable[[Shard], None]) -> Problems:
    """Reads all files and hands on their shards as long as no row is bad; returns the warnings.

    Raises:
        DataError: as of `read_triplets`, with every bad row, when all have been read.
    """

    def while_good(shard: Shard) -> None:
        if not reading.bad_rows:
            on_shard(shard)

    rows = _ShardedRows(on_shard=while_good)
    reading = Reading(columns=files.columns, unanswered=files.unanswered, rows=rows)
    read_into(reading, files.sources())
    if reading.errors.count:
        raise DataError(reading.errors.kept, reading.errors.count)
    return reading.warnings


def shards_in(source: Source) -> int:
    """How many shards a Parquet file has at most."""
    return -(-pq.read_metadata(source.path).num_rows // SHARD_ROWS)


def read_shard(files: Files, file: int, number: int) -> Shard | None:
    """One shard of a Parquet file; None where none of its rows is wanted.

    Raises:
        DataError: a row is bad. Whether an id comes again in another shard is not seen.
    """
    found: list[Shard] = []
    rows = _ShardedRows(on_shard=found.append, file=file)
    reading = Reading(columns=files.columns, unanswered=files.unanswered, rows=rows)
    part = range(number * SHARD_ROWS, (number + 1) * SHARD_ROWS)
    reading.start(replace(files.sources()[file], rows=part))
    FORMATS[reading.source.suffix](reading.source, reading)
    reading.finish()
    if reading.errors.count:
        raise DataError(reading.errors.kept, reading.errors.count)
    return found[0] if found else None


def is_divisible(path: Path) -> bool:
    """Whether rows in the middle of a file can be read without those before them."""
    return path.suffix.lower() in (".parquet", ".pq")
