"""Reads triplets from files of any kind into one Arrow table and names every problem it meets.

Files are streamed, row by row or record batch by record batch, and good rows go straight into
Arrow, so memory is that of the table and not of Python objects, nor of problems.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa

from causal_core.data.column_paths import ColumnPaths
from causal_core.data.formats.table import FORMATS
from causal_core.data.problems import Problems
from causal_core.data.reading import BadRow, HopelessFileError, Reading
from causal_core.data.schema import DataError, RowProblem, Triplet
from causal_core.data.sources import Source, resolve_sources


@dataclass(frozen=True)
class ReadResult:
    """The good rows in canonical form, and what was wrong with the others."""

    table: pa.Table
    found_errors: Problems
    found_warnings: Problems
    bad_rows: int

    @property
    def errors(self) -> list[RowProblem]:
        """The first errors; `found_errors.count` says how many there are."""
        return self.found_errors.kept

    @property
    def warnings(self) -> list[RowProblem]:
        """The first warnings."""
        return self.found_warnings.kept

    def triplets(self) -> Iterator[Triplet]:
        """The good rows one by one, in file order."""
        for batch in self.table.to_batches():
            for row in batch.to_pylist():
                yield Triplet.from_row(row)

    def refuse_errors(self) -> None:
        """Raises the errors, if there are any, as one `DataError`."""
        if self.found_errors.count:
            raise DataError(self.errors, self.found_errors.count)


def read_triplets(
    paths: str | Path | Sequence[str | Path],
    *,
    on_error: Literal["raise", "collect"] = "raise",
    on_bad_row: Callable[[BadRow], None] | None = None,
    columns: ColumnPaths | None = None,
    convert: bool = False,
    unanswered: bool = False,
) -> ReadResult:
    """Read triplet files into one table in `TRIPLET_SCHEMA`.

    Args:
        paths: Files of the kinds in `FORMATS`, and directories that `datasets` has saved.
            `FILE#SPLIT` keeps only the rows of that split (`data.parquet#train`).
        on_error: `raise` a `DataError` with the first problems of all files, or `collect` them in
            the result and leave the bad rows out.
        on_bad_row: called with each row left out, while reading, to keep it elsewhere.
        columns: where rows of any other layout have our fields.
        convert: make rows of ours of those in a known layout of others (`formats/layouts.py`),
            which are refused by name otherwise.
        unanswered: rows may lack their answers, which are then empty.

    Raises:
        DataError: always for a file as a whole (missing, empty, of unknown kind, damaged); for bad
            rows if `on_error` is `raise`.
    """
    reading = Reading(on_bad_row, columns, convert, unanswered)
    given = [paths] if isinstance(paths, str | Path) else paths
    read_into(reading, resolve_sources(given, tuple(FORMATS)))
    result = ReadResult(reading.rows.table(), reading.errors, reading.warnings, reading.bad_rows)
    if on_error == "raise":
        result.refuse_errors()
    return result


def read_into(reading: Reading, sources: Iterable[Source]) -> None:
    """Reads files one after the other (`DataError` for one that cannot be read as a whole)."""
    for source in sources:
        reading.start(source)
        try:
            FORMATS[source.suffix](source, reading)
        except HopelessFileError as stopped:  # told before the rows that it is about
            reading.errors.extend(stopped.problems, stopped.count)
        reading.finish()
    reading.close()
