"""What one call of the reader collects over all its files: rows, problems and the ids seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from causal_core.data.column_paths import ColumnPaths, nearest
from causal_core.data.formats.layouts import Layout, NoRowError, layout_of
from causal_core.data.problems import FileErrors, Problems, holds_rows
from causal_core.data.rules import Finding, check_row, split_name
from causal_core.data.schema import (
    CANONICAL_NAME,
    INJECTIONS,
    TRIPLET_SCHEMA,
    DataError,
    RowProblem,
)
from causal_core.data.sources import Source
from causal_core.visible_text import quoted, shown

BATCH_ROWS = 4096
# An Arrow string array holds at most 2 GiB; a batch is closed long before.
_BATCH_CHARS = 16 * 2**20
# No row is as long. A line of brackets takes about a hundred times its length when parsed.
MAX_ROW_BYTES = 4 * 2**20
# A file of 300 KB can hold 40 million bad rows. Where so many, and hardly any other, were bad, the
# rest is not looked at.
MOST_BAD_ROWS, _BAD_TO_GOOD = 200_000, 100
_NO_ANSWER = (
    "there is no answer; give it, or let a model write it with causal data targets, which reads "
    "rows of this layout"
)
# Distinct unknown keys remembered per file: a hostile file may have a new one in every row.
_MAX_UNKNOWN_KEYS = 50


class HopelessFileError(DataError):
    """Next to all of very many rows of a file were bad."""


@dataclass(frozen=True)
class BadRow:
    """A row that was left out: where it was, why, and its text as far as it can be shown."""

    file: str
    line: int
    problems: tuple[RowProblem, ...]
    raw: str


def characters(value: Any) -> int:
    """Length of the texts in a field of a row, those in lists and records as well."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(characters, value.values()))
    return sum(map(characters, value)) if isinstance(value, list) else 0


@dataclass
class Rows:
    """Good rows on their way into Arrow: a short buffer of columns and the finished batches."""

    batches: list[pa.RecordBatch] = field(default_factory=list)
    columns: dict[str, list[Any]] = field(
        default_factory=lambda: {name: [] for name in TRIPLET_SCHEMA.names}
    )
    buffered_rows: int = 0
    buffered_chars: int = 0

    def add(self, row: Mapping[str, Any], line: int) -> None:
        """Takes a row, which was found at this line of its file."""
        for name, values in self.columns.items():
            value = row[name]
            values.append(value)
            self.buffered_chars += characters(value)
        self.buffered_rows += 1
        if self.buffered_rows >= BATCH_ROWS or self.buffered_chars >= _BATCH_CHARS:
            self.flush()

    def flush(self) -> None:
        if self.buffered_rows:
            arrays = [pa.array(self.columns[item.name], item.type) for item in TRIPLET_SCHEMA]
            self.batches.append(pa.RecordBatch.from_arrays(arrays, schema=TRIPLET_SCHEMA))
        for values in self.columns.values():
            values.clear()
        self.buffered_rows = self.buffered_chars = 0

    def end_file(self) -> None:
        """What comes now is of the next file."""

    def table(self) -> pa.Table:
        self.flush()
        return pa.Table.from_batches(self.batches, schema=TRIPLET_SCHEMA)


class Reading:
    """State of one call over all its files.

    Args:
        on_bad_row: Called with each row that is left out.
        columns: Where rows of another layout have our fields.
        convert: Whether rows of a known layout of others are made into ours.
        unanswered: Whether rows may lack their answers, which are then empty.
        rows: What takes the good rows.
    """

    def __init__(
        self,
        on_bad_row: Callable[[BadRow], None] | None = None,
        columns: ColumnPaths | None = None,
        convert: bool = False,
        unanswered: bool = False,
        rows: Rows | None = None,
    ) -> None:
        self.columns = columns or ColumnPaths()
        self.convert = convert
        self.unanswered = unanswered
        self.rows = rows or Rows()
        self.errors = Problems()
        self.warnings = Problems()
        self.bad_rows = 0
        self._on_bad_row = on_bad_row
        self.wants_text = on_bad_row is not None
        # Hash of an id -> (file index, line) packed in one integer: a million ids stay small.
        self._first_seen: dict[int, int] = {}
        self._files: list[str] = []
        # Rows met and rows of the split that is wanted, by what was named and that split.
        self._of_given: dict[tuple[str, str | None], tuple[int, int]] = {}

    # Whether a table's columns are read whatever they are called, and not those of triplets alone.
    every_column = False

    def start(self, source: Source) -> None:
        self.source = source
        self.part = source.part  # the split of rows that name none
        self._files.append(source.name)
        self._file_errors = FileErrors(source.name)
        self._unknown: Counter[str] = Counter()
        self._without_witness = 0
        self._plain = 0
        self._foreign: Counter[Layout] = Counter()
        self._fields_found: set[str] = set()
        self._keys: dict[str, None] = {}  # of the rows, the first of them
        self._met = 0
        self._kept = 0
        self._bad = 0
        self._shape: str | None = None  # what the last bad row looks like where it holds rows

    def finish(self) -> None:
        """Sum up the file: what is counted once per file rather than told row by row."""
        for layout, count in self._foreign.items():
            self.errors.add(RowProblem(self.source.name, 0, "", self.foreign(layout, count)))
        told = self._file_errors.close(self._kept, self._keys, self.errors, self._shape)
        for key, count in self._unknown.items() if not told else ():
            hint = nearest(key, CANONICAL_NAME)
            self.warn(0, shown(key), f"unknown key, ignored in {count} rows{hint}")
        for name, path in self.columns.paths.items() if self._keys else ():
            if name not in self._fields_found:
                reason = f"no row has {quoted(path)}{nearest(path, self._keys)}"
                self.warn(0, name, reason)
        if self._without_witness:
            reason = f"missing in {self._without_witness} injections: success is not judged there"
            self.warn(0, "witness", reason)
        if self._plain:
            reason = f"none in {self._plain:,} rows: no attack is trained or tested there"
            self.warn(0, INJECTIONS, reason)
        self.rows.end_file()
        given = (self.source.given, self.source.split)
        met, kept = self._of_given.get(given, (0, 0))
        self._of_given[given] = met + self._met, kept + self._kept

    def close(self) -> None:
        """Refuse what was named and has nothing to read (`DataError`): a directory as a whole."""
        for (name, split), (met, kept) in self._of_given.items():
            if not met:
                raise DataError.in_file(name, "the file has no rows")
            if split is not None and not kept:
                raise DataError.in_file(name, f"no row has the split {split}")

    def foreign(self, layout: Layout, rows: int | None = None) -> str:
        """What a file of another layout is, and the command that converts it."""
        count = {None: "holds", 1: "1 row holds"}.get(rows, f"{rows or 0:,} rows hold")
        return (
            f"{count} {layout.name}, not triplets: causal data convert "
            f"{shown(self.source.given)} OUT.jsonl makes {layout.becomes} of them"
        )

    def warn(self, line: int, about: str, reason: str) -> None:
        """Tell of something in the file that refuses nothing."""
        self.warnings.add(RowProblem(self.source.name, line, about, reason))

    def take(self, raw: Mapping[str, Any], line: int, extra: Sequence[Finding], text: str) -> None:
        """Judge one parsed row. `extra` are problems that parsing found; `text` is the original."""
        self._met += 1
        wanted, given = self.source.split, raw.get("split")
        blank = given is None or (isinstance(given, str) and not given.strip())
        if blank and self.part is not None:
            raw, given, blank = {**raw, "split": self.part}, self.part, False
        # A row of another split, or of none, is none of our business; one of no known split is
        # reported.
        if wanted is not None and (blank or split_name(given) not in (None, wanted)):
            return
        self._kept += 1
        for key in raw if len(self._keys) < _MAX_UNKNOWN_KEYS else ():
            self._keys.setdefault(key[:200])
        if found := self.columns.found_in(raw):
            self._fields_found |= found.keys()
            raw = self.columns.applied(raw, found)
        layout = layout_of(raw.keys())
        if layout is not None and not self.convert:
            self._foreign[layout] += 1
            self._leave_out(line, [("", self.foreign(layout))], text)
            return
        if layout is not None:
            try:
                raw = layout.converted(raw)
            except NoRowError as problem:
                self._refuse(line, [("", str(problem))], text)
                return
            if raw.get("benign_output", "") is None and not self.unanswered:
                self._refuse(line, [("benign_output", _NO_ANSWER)], text)
                return
        default = f"{self.source.id_stem}:{line}"
        checked = check_row(raw, default, unanswered=self.unanswered)
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
            self._shape = holds_rows(raw)
            self._refuse(line, findings, text)
            return
        self._plain += not checked.row[INJECTIONS]
        self._without_witness += sum(i["witness"] is None for i in checked.row[INJECTIONS])
        for about, reason in checked.warnings:
            self.warn(line, about, reason)
        self.rows.add(checked.row, line)

    def refuse_unparsed(self, line: int, reason: str, text: str) -> None:
        """Report a line that is no row at all."""
        self._met += 1
        self._kept += 1
        self._refuse(line, [("", reason)], text)

    def _refuse(self, line: int, findings: Sequence[Finding], text: str) -> None:
        for field_name, reason in findings:
            self._file_errors.add(RowProblem(self.source.name, line, field_name, reason))
        self._leave_out(line, findings, text)

    def _leave_out(self, line: int, findings: Sequence[Finding], text: str) -> None:
        self.bad_rows += 1
        if self._on_bad_row is not None:
            problems = tuple(RowProblem(self.source.name, line, *finding) for finding in findings)
            self._on_bad_row(BadRow(self.source.name, line, problems, text))
        self._bad += 1
        if self._bad >= MOST_BAD_ROWS and self._bad > _BAD_TO_GOOD * (self._kept - self._bad):
            raise HopelessFileError.in_file(
                self.source.name,
                f"{self._bad:,} of its first {self._kept:,} rows are bad; nothing is read from "
                f"line {line + 1:,} on",
            )

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
