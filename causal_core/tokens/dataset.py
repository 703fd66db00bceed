"""Tokenised triplets on disk: an Arrow file, memory-mapped, with random access by row.

A cache file is keyed by the content of the triplet files and of everything that decides how text
becomes tokens, so it can be stale in no way. Workers of a node share its pages; memory does not
grow with the number of rows.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from causal_core.data.column_paths import ColumnPaths
from causal_core.data.reader import read_triplets
from causal_core.data.schema import INJECTIONS, TRIPLET_SCHEMA, DataError, Triplet
from causal_core.data.sources import files_of, split_selector
from causal_core.errors import UserError
from causal_core.files import CACHE_SETTING, file_digest, whole_or_absent, writes_to
from causal_core.tokens.prompts import PromptEncoder
from causal_core.tokens.rows import (
    INJECTION_SPANS,
    INJECTION_TOKENS,
    SPANS,
    token_rows,
    tokens_of,
)
from causal_core.tokens.triplet import TripletTokens

_FORMAT = 3
_ROWS_PER_BATCH = 4096
_TOKENS = pa.list_(pa.int32())
_SCHEMA = pa.schema(
    [
        *TRIPLET_SCHEMA,
        *(pa.field(f"{span}_tokens", _TOKENS, nullable=False) for span in SPANS),
        pa.field(
            INJECTION_TOKENS,
            pa.list_(pa.struct([pa.field(s, _TOKENS, nullable=False) for s in INJECTION_SPANS])),
            nullable=False,
        ),
        pa.field("longest", pa.int32(), nullable=False),
        pa.field("size_bound", pa.int32(), nullable=False),
    ]
)

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class TripletDataset:
    """Rows of triplets with their tokens."""

    table: pa.Table
    fingerprint: str  # sha256 over the content of the files and the tokenisation
    injections: int | None = None  # of a row at most: its first ones

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def tokens(self, index: int) -> TripletTokens:
        """The token spans of one row."""
        names = ("id", INJECTION_TOKENS, *(f"{span}_tokens" for span in SPANS))
        row = {name: self.table.column(name)[index].as_py() for name in names}
        row[INJECTION_TOKENS] = row[INJECTION_TOKENS][: self.injections]
        return tokens_of(row)

    def triplet(self, index: int) -> Triplet:
        """The texts of one row."""
        row = {name: self.table.column(name)[index].as_py() for name in TRIPLET_SCHEMA.names}
        row[INJECTIONS] = row[INJECTIONS][: self.injections]
        return Triplet.from_row(row)

    def head(self, limit: int | None) -> TripletDataset:
        """The first rows; the fingerprint says so."""
        if limit is None or limit >= len(self):
            return self
        name = f"{self.fingerprint}[:{limit}]"
        return replace(self, table=self.table.slice(0, limit), fingerprint=name)

    def with_injections(self, limit: int | None) -> TripletDataset:
        """The rows with their first injections alone; the fingerprint says so."""
        if limit is None or limit >= self.most_injections():
            return self
        return replace(self, injections=limit, fingerprint=f"{self.fingerprint}x{limit}")

    def most_injections(self) -> int:
        """Of a row."""
        most = int(pc.max(pc.list_value_length(self.table.column(INJECTIONS))).as_py() or 0)
        return most if self.injections is None else min(most, self.injections)

    def injections_of(self, index: int) -> range:
        """The numbers of a row's injections."""
        return range(len(self.table.column(INJECTIONS)[index]))[: self.injections]

    def results(self) -> int:
        """How many an evaluation has: one for each injection, and for each row without any."""
        return sum(max(1, len(self.injections_of(row))) for row in range(len(self)))

    def size_bounds(self) -> np.ndarray:
        """An upper bound of each row's tree nodes (`TripletTokens.size_bound`), [rows].

        With all injections of the file, also where the first ones alone are used.
        """
        return self.table.column("size_bound").to_numpy()

    def longest(self) -> int:
        """Tokens of the longest prompt with its answer."""
        return int(pc.max(self.table.column("longest")).as_py() or 0)

    def longest_of(self, *spans: str) -> int:
        """Tokens of the longest span of these kinds (`benign_answer`, or of an injection)."""
        lengths = (pc.max(pc.list_value_length(self._all(span))).as_py() or 0 for span in spans)
        return max(lengths, default=0)

    def _all(self, span: str) -> pa.ChunkedArray:
        """A span of all rows, or of all injections of all rows."""
        if span in SPANS:
            return self.table.column(f"{span}_tokens")
        return pc.struct_field(pc.list_flatten(self.table.column(INJECTION_TOKENS)), span)

    def first_token_from(self, limit: int) -> tuple[str, int] | None:
        """The id of the first row with a token of `limit` or more, and that token."""
        if not any(
            (pc.max(pc.list_flatten(self._all(span))).as_py() or 0) >= limit
            for span in (*SPANS, *INJECTION_SPANS)
        ):
            return None
        for row in range(len(self)):
            tokens = self.tokens(row)
            spans = [getattr(tokens, span) for span in SPANS]
            spans += [getattr(i, span) for i in tokens.injections for span in INJECTION_SPANS]
            largest = max((token for span in spans for token in span), default=0)
            if largest >= limit:
                return tokens.id, largest
        return None

    def without_counterfactual(self) -> int:
        """How many rows have no U'."""
        return int(self.table.column("benign_cf_input").null_count)

    def without_answers(self) -> bool:
        """Whether any row lacks the reference answer, so that attack success alone is judged."""
        lengths = pc.list_value_length(self._all("benign_answer"))
        return bool(pc.any(pc.equal(lengths, 0)).as_py())

    def has_witness(self) -> bool:
        """Whether any injection has a witness."""
        witnesses = pc.struct_field(pc.list_flatten(self.table.column(INJECTIONS)), "witness")
        return bool(witnesses.null_count < witnesses.length())

    def mean_tokens(self) -> float:
        """Mean over rows of the tokens of all spans but witnesses, S counted once."""
        total = sum(
            pc.sum(pc.list_value_length(self._all(span))).as_py() or 0
            for span in (*SPANS, *INJECTION_SPANS)
            if span != "witness"
        )
        return total / max(1, len(self))


def load_dataset(
    paths: Sequence[str],
    encoder: PromptEncoder,
    *,
    max_length: int,
    overlong: str,
    cache: Path,
    unanswered: bool = False,
    on_dropped: Callable[[str], None] | None = None,
    progress: Progress | None = None,
    columns: Mapping[str, str] | None = None,
) -> TripletDataset:
    """Reads, checks and tokenises triplet files, or maps the cached result.

    Args:
        paths: Triplet files, each with an optional `#SPLIT`.
        max_length: Longest prompt + answer in tokens.
        overlong: `error`, or `drop`: leave such rows out and say which to `on_dropped`.
        cache: Directory of the cache files.
        unanswered: Rows may lack their reference answers; attack success alone can be judged there.
        progress: Called with (rows done, rows in all).
        columns: Where rows of another layout have our fields, by field.

    Raises:
        DataError: a bad row, a text without tokens, no rows, or too long a row.
    """
    if not paths:
        raise UserError("no triplet files given: set data.train (and data.validation, data.test)")
    where = ColumnPaths(columns)
    key = _cache_key(paths, encoder, cache, where, unanswered)
    target = cache / "tokens" / f"{key}.arrow"
    cached = _read_cache(target)
    if cached is None:
        result = read_triplets(list(paths), columns=where, unanswered=unanswered)
        for warning in result.warnings:
            log.warning("%s", warning)
        _write_cache(target, _tokenised(result.table, encoder, progress))
        cached = _read_cache(target)
        assert cached is not None
    table = cached
    too_long = pc.greater(table.column("longest"), max_length)
    count = pc.sum(pc.cast(too_long, pa.int64())).as_py() or 0
    if count:
        ids = table.filter(too_long).column("id").to_pylist()
        message = (
            f"{count} of {table.num_rows} triplets are longer than data.max_length={max_length} "
            f"tokens (longest {pc.max(table.column('longest')).as_py()}): "
            + ", ".join(repr(i) for i in ids[:10])
            + (" ..." if count > 10 else "")
        )
        if overlong == "error" or count == table.num_rows:
            raise UserError(f"{message}. Raise data.max_length, or set data.overlong=drop")
        if on_dropped is not None:
            on_dropped(f"dropped: {message}")
        target = cache / "tokens" / f"{key}-{max_length}.arrow"
        table = rows_of(table, pc.less_equal(table.column("longest"), max_length), target)
        key = f"{key}<= {max_length}"
    return TripletDataset(table, key)


def rows_of(table: pa.Table, chosen: pa.ChunkedArray, target: Path) -> pa.Table:
    """The rows for which `chosen` is true, mapped from a cache file of their own."""
    kept = _read_cache(target)
    if kept is None:
        _write_cache(target, _chosen(table, chosen))
        kept = _read_cache(target)
        assert kept is not None
    return kept


def _chosen(table: pa.Table, chosen: pa.ChunkedArray) -> Iterator[pa.RecordBatch]:
    start = 0
    for batch in table.to_batches():
        mask = chosen.slice(start, batch.num_rows).combine_chunks()
        start += batch.num_rows
        # A cache of before says of benign_cf_input that it is in every row: the same columns.
        yield pa.RecordBatch.from_arrays(batch.columns, schema=_SCHEMA).filter(mask)


def _cache_key(
    paths: Sequence[str],
    encoder: PromptEncoder,
    cache: Path,
    columns: ColumnPaths,
    unanswered: bool,
) -> str:
    digest = hashlib.sha256(json.dumps([_FORMAT, encoder.fingerprint()]).encode())
    if columns.paths:
        digest.update(json.dumps(columns.paths, sort_keys=True).encode())
    if unanswered:
        digest.update(b"answers may be missing")
    for path in paths:
        name, split = split_selector(path)
        try:
            for found in files_of(name):
                part = [found.part] if found.part else []
                key = [file_digest(found.path, cache), split, *part]
                digest.update(json.dumps(key).encode())
        except OSError as error:
            raise DataError.in_file(name, f"cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def _tokenised(
    table: pa.Table, encoder: PromptEncoder, progress: Progress | None
) -> Iterator[pa.RecordBatch]:
    done = 0
    for batch in table.to_batches(max_chunksize=_ROWS_PER_BATCH):
        rows = batch.to_pylist()
        yield pa.RecordBatch.from_pylist(token_rows(rows, encoder), schema=_SCHEMA)
        done += batch.num_rows
        if progress is not None:
            progress(done, table.num_rows)


def _read_cache(target: Path) -> pa.Table | None:
    """The mapped table; None where there is none or it is damaged (it is then made again)."""
    try:
        return pa.ipc.open_file(pa.memory_map(str(target))).read_all()
    except (OSError, pa.ArrowInvalid):
        return None


def _write_cache(target: Path, batches: Iterator[pa.RecordBatch]) -> None:
    with (
        writes_to(target.parent, CACHE_SETTING),
        whole_or_absent(target) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, _SCHEMA) as writer,
    ):
        for batch in batches:
            writer.write_batch(batch)
