"""Reads triplets from JSONL and Parquet into one Arrow table and names every problem it meets.

Files are streamed, line by line or record batch by record batch, and good rows go straight into
Arrow, so memory is that of the table and not of Python objects.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from causal_core.data.rules import Finding, check_row, split_name
from causal_core.data.schema import (
    CANONICAL_NAME,
    SPLIT_ALIASES,
    SPLITS,
    TRIPLET_SCHEMA,
    DataError,
    RowProblem,
    Triplet,
    quoted,
    shown,
)

TEXT_SUFFIXES = (".jsonl", ".json", ".ndjson")
PARQUET_SUFFIXES = (".parquet", ".pq")

_MAX_LINE_BYTES = 64 * 2**20
_BATCH_ROWS = 4096
# An Arrow string array holds at most 2 GiB; a batch is closed long before.
_BATCH_CHARS = 64 * 2**20
# Distinct unknown keys remembered per file: a hostile file may have a new one in every row.
_MAX_UNKNOWN_KEYS = 50


@dataclass(frozen=True)
class BadRow:
    """A row that was left out: where it was, why, and its text as far as it can be shown."""

    file: str
    line: int
    problems: tuple[RowProblem, ...]
    raw: str


@dataclass(frozen=True)
class ReadResult:
    """The good rows in canonical form, and what was wrong with the others."""

    table: pa.Table
    errors: list[RowProblem]
    warnings: list[RowProblem]

    def triplets(self) -> Iterator[Triplet]:
        """The good rows one by one, in file order."""
        for batch in self.table.to_batches():
            for row in batch.to_pylist():
                yield Triplet.from_row(row)


def read_triplets(
    paths: str | Path | Sequence[str | Path],
    *,
    on_error: Literal["raise", "collect"] = "raise",
    on_bad_row: Callable[[BadRow], None] | None = None,
) -> ReadResult:
    """Read triplet files into one table in `TRIPLET_SCHEMA`.

    Args:
        paths: JSONL (`.jsonl`, `.json`, `.ndjson`) or Parquet files. `FILE#SPLIT` keeps only the
            rows of that split (`data.parquet#train`).
        on_error: `raise` a `DataError` with all problems of all files, or `collect` them in
            the result and leave the bad rows out.
        on_bad_row: called with each row left out, while reading, to keep it elsewhere.

    Raises:
        DataError: always for a file as a whole (missing, empty, of unknown kind, damaged); for bad
            rows if `on_error` is `raise`.
    """
    sources = _sources([paths] if isinstance(paths, str | Path) else paths)
    reading = _Reading(on_bad_row)
    for source in sources:
        reading.start(source)
        if source.path.suffix.lower() in PARQUET_SUFFIXES:
            _read_parquet(source, reading)
        else:
            _read_lines(source, reading)
        reading.finish()
    if reading.errors and on_error == "raise":
        raise DataError(reading.errors)
    return ReadResult(reading.rows.table(), reading.errors, reading.warnings)


@dataclass(frozen=True)
class _Source:
    path: Path
    split: str | None
    id_stem: str

    @property
    def name(self) -> str:
        return str(self.path)


def split_selector(given: str | Path) -> tuple[str, str | None]:
    """`FILE#SPLIT` as file and split; a file whose own name has a `#` is taken as it is."""
    path = Path(given)
    if path.exists() or "#" not in path.name:
        return str(given), None
    name, _, wanted = str(given).rpartition("#")
    return name, wanted


def _sources(paths: Iterable[str | Path]) -> list[_Source]:
    """Resolve `FILE#SPLIT` and refuse files that cannot be read at all, all of them at once."""
    sources: list[_Source] = []
    problems: list[RowProblem] = []
    stems: dict[str, list[Path]] = {}
    for given in paths:
        name, wanted = split_selector(given)
        path, split = Path(name), None
        if wanted is not None:
            split = split_name(wanted)
            if split is None:
                known = ", ".join((*SPLITS, *SPLIT_ALIASES))
                problems.append(_about(given, f"{quoted(wanted)} is no split; known: {known}"))
                continue
        reason = _unreadable(path)
        if reason:
            problems.append(_about(path, reason))
            continue
        namesakes = stems.setdefault(path.stem, [])
        if path not in namesakes:
            namesakes.append(path)
        place = namesakes.index(path)
        sources.append(_Source(path, split, path.stem + (f"~{place + 1}" if place else "")))
    if not sources and not problems:
        problems.append(RowProblem("", 0, "", "no data files were given"))
    if problems:
        raise DataError(problems)
    return sources


def _about(path: str | Path, reason: str) -> RowProblem:
    return RowProblem(str(path), 0, "", reason)


def _unreadable(path: Path) -> str | None:
    """Why a path cannot be a data file, or None."""
    if path.is_dir():
        return "is a directory; name the files in it"
    if not path.exists():
        return "no such file"
    suffix = path.suffix.lower()
    if suffix not in TEXT_SUFFIXES + PARQUET_SUFFIXES:
        known = ", ".join(TEXT_SUFFIXES + PARQUET_SUFFIXES)
        return f"unknown kind of file {quoted(suffix)}; known: {known}"
    try:
        with path.open("rb") as handle:
            head = handle.read(64)
    except OSError as problem:
        return f"cannot be opened: {problem.strerror}"
    if not head:
        return "the file is empty"
    if suffix in TEXT_SUFFIXES:
        if head.startswith(b"PAR1"):
            return "is a Parquet file; name it .parquet"
        if head.startswith(b"\x1f\x8b"):
            return "is compressed with gzip; unpack it first"
        if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
            return "is one JSON array; write one object per line instead"
    return None


@dataclass
class _Rows:
    """Good rows on their way into Arrow: a short buffer of columns and the finished batches."""

    batches: list[pa.RecordBatch] = field(default_factory=list)
    columns: dict[str, list[Any]] = field(
        default_factory=lambda: {name: [] for name in TRIPLET_SCHEMA.names}
    )
    buffered_rows: int = 0
    buffered_chars: int = 0

    def add(self, row: Mapping[str, Any]) -> None:
        for name, values in self.columns.items():
            value = row[name]
            values.append(value)
            if isinstance(value, str):
                self.buffered_chars += len(value)
        self.buffered_rows += 1
        if self.buffered_rows >= _BATCH_ROWS or self.buffered_chars >= _BATCH_CHARS:
            self.flush()

    def flush(self) -> None:
        if self.buffered_rows:
            arrays = [pa.array(self.columns[item.name], item.type) for item in TRIPLET_SCHEMA]
            self.batches.append(pa.RecordBatch.from_arrays(arrays, schema=TRIPLET_SCHEMA))
        for values in self.columns.values():
            values.clear()
        self.buffered_rows = self.buffered_chars = 0

    def table(self) -> pa.Table:
        self.flush()
        return pa.Table.from_batches(self.batches, schema=TRIPLET_SCHEMA)


class _Reading:
    """State of one call over all its files: rows, problems, and the ids seen so far."""

    def __init__(self, on_bad_row: Callable[[BadRow], None] | None) -> None:
        self.rows = _Rows()
        self.errors: list[RowProblem] = []
        self.warnings: list[RowProblem] = []
        self._on_bad_row = on_bad_row
        self.wants_text = on_bad_row is not None
        # Hash of an id -> (file index, line) packed in one integer: a million ids stay small.
        self._first_seen: dict[int, int] = {}
        self._files: list[str] = []

    def start(self, source: _Source) -> None:
        self.source = source
        self._files.append(source.name)
        self._unknown: Counter[str] = Counter()
        self._without_witness = 0
        self._met = 0
        self._kept = 0

    def finish(self) -> None:
        """Sum up the file: what is counted once per file rather than told row by row."""
        name = self.source.name
        for key, count in self._unknown.items():
            self.warnings.append(
                RowProblem(name, 0, shown(key), f"unknown key, ignored in {count} rows")
            )
        if self._without_witness:
            reason = f"missing in {self._without_witness} rows: attack success is not judged there"
            self.warnings.append(RowProblem(name, 0, "witness", reason))
        if not self._met:
            raise DataError.in_file(name, "the file has no rows")
        if self.source.split is not None and not self._kept:
            raise DataError.in_file(name, f"no row has the split {self.source.split}")

    def take(self, raw: Mapping[str, Any], line: int, extra: Sequence[Finding], text: str) -> None:
        """Judge one parsed row. `extra` are problems that parsing found; `text` is the original."""
        self._met += 1
        wanted = self.source.split
        if wanted is not None:
            given = raw.get("split")
            # A row of another split is none of our business; one of no known split is reported.
            if given is None or split_name(given) not in (None, wanted):
                return
        self._kept += 1
        checked = check_row(raw, f"{self.source.id_stem}:{line}")
        # A field that could not even be decoded is not missing as well.
        undecoded = {(name, "missing") for name, _ in extra}
        findings = [*extra, *(found for found in checked.errors if found not in undecoded)]
        first = self._earlier_line(checked.row["id"], line)
        if first:
            findings.append(("id", f"{quoted(checked.row['id'])} was used before, in {first}"))
        for key in (name[:200] for name in checked.unknown):
            if key in self._unknown or len(self._unknown) < _MAX_UNKNOWN_KEYS:
                self._unknown[key] += 1
        if findings:
            self._refuse(line, findings, text)
            return
        self._without_witness += checked.row["witness"] is None
        self.warnings.extend(RowProblem(self.source.name, line, *w) for w in checked.warnings)
        self.rows.add(checked.row)

    def refuse_unparsed(self, line: int, reason: str, text: str) -> None:
        """Report a line that is no row at all."""
        self._met += 1
        self._kept += 1
        self._refuse(line, [("", reason)], text)

    def _refuse(self, line: int, findings: Sequence[Finding], text: str) -> None:
        problems = tuple(RowProblem(self.source.name, line, *finding) for finding in findings)
        self.errors.extend(problems)
        if self._on_bad_row is not None:
            self._on_bad_row(BadRow(self.source.name, line, problems, text))

    def _earlier_line(self, row_id: Any, line: int) -> str | None:
        """Where an id was first used, or None and remember it."""
        if not isinstance(row_id, str):
            return None
        here = (len(self._files) - 1) << 40 | line
        there = self._first_seen.setdefault(hash(row_id), here)
        if there == here:
            return None
        file, first_line = self._files[there >> 40], there & ((1 << 40) - 1)
        return f"line {first_line}" if file == self.source.name else f"{shown(file)}:{first_line}"


class _Object(dict[str, Any]):
    """A JSON object that remembers which of its keys were repeated."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        counts = Counter(key for key, _ in pairs) if len(self) < len(pairs) else {}
        self.repeated = [key for key, count in counts.items() if count > 1]


def _read_lines(source: _Source, reading: _Reading) -> None:
    with source.path.open("rb") as handle:
        for line, data in enumerate(_lines(handle), start=1):
            if data is None:
                limit = f"{_MAX_LINE_BYTES // 2**20} MiB"
                reading.refuse_unparsed(line, f"the line is longer than {limit}", "")
            elif data.strip():
                _read_line(data.removeprefix(b"\xef\xbb\xbf") if line == 1 else data, line, reading)


def _lines(handle: BinaryIO) -> Iterator[bytes | None]:
    """The lines of a file, None for one that is too long to be a row."""
    while data := handle.readline(_MAX_LINE_BYTES):
        if len(data) < _MAX_LINE_BYTES or data.endswith(b"\n"):
            yield data
            continue
        while data and not data.endswith(b"\n"):
            data = handle.readline(_MAX_LINE_BYTES)
        yield None


def _read_line(data: bytes, line: int, reading: _Reading) -> None:
    try:
        text = data.decode()
    except UnicodeDecodeError as problem:
        reason = f"not UTF-8: {problem.reason} at byte {problem.start + 1}"
        reading.refuse_unparsed(line, reason, data.decode(errors="backslashreplace").rstrip("\r\n"))
        return
    text = text.rstrip("\r\n")
    try:
        value = json.loads(text, object_pairs_hook=_Object)
        if not isinstance(value, _Object):
            reading.refuse_unparsed(line, "not a JSON object", text)
            return
        repeated = [
            (CANONICAL_NAME.get(key, shown(key)), f"the key {quoted(key)} is given twice")
            for key in value.repeated
        ]
        reading.take(value, line, repeated, text)
    except json.JSONDecodeError as problem:
        reading.refuse_unparsed(line, f"not JSON: {problem.msg} (column {problem.colno})", text)
    except RecursionError:
        reading.refuse_unparsed(line, "nested too deeply", text)
    except ValueError as problem:  # an integer of more digits than Python converts
        reading.refuse_unparsed(line, f"not usable JSON: {quoted(str(problem))}", text)


def _read_parquet(source: _Source, reading: _Reading) -> None:
    try:
        with pq.ParquetFile(source.path) as file:
            names = file.schema_arrow.names
            repeated = [name for name, count in Counter(names).items() if count > 1]
            if repeated:
                reason = f"more than one column is named {quoted(repeated[0])}"
                raise DataError.in_file(source.name, reason)
            # Unknown columns are named without being read: they may be large.
            for name in names:
                if name not in CANONICAL_NAME:
                    reading.warnings.append(
                        RowProblem(source.name, 0, shown(name), "unknown column, ignored")
                    )
            known = [name for name in names if name in CANONICAL_NAME]
            line = 0
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=known):
                for index in range(batch.num_rows):
                    line += 1
                    _read_record(batch, index, line, reading)
    except (pa.ArrowException, OSError) as problem:
        reason = f"cannot be read as Parquet: {quoted(str(problem), limit=200)}"
        raise DataError.in_file(source.name, reason) from problem


def _read_record(batch: pa.RecordBatch, index: int, line: int, reading: _Reading) -> None:
    row: dict[str, Any] = {}
    damaged: list[Finding] = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            row[name] = column[index].as_py()
        except UnicodeDecodeError as problem:
            damaged.append(
                (CANONICAL_NAME[name], f"not UTF-8: {problem.reason} at byte {problem.start + 1}")
            )
    text = json.dumps(row, default=repr) if reading.wants_text else ""
    reading.take(row, line, damaged, text)
