"""Tokenised triplets on disk: Arrow files, memory-mapped, with random access by row.

They are kept under a key of the content of the triplet files and of everything that decides how
text becomes tokens, so they can be stale in no way. Workers of a node share their pages; memory
does not grow with the number of rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from causal_core.data.column_paths import ColumnPaths
from causal_core.data.schema import INJECTIONS, TRIPLET_SCHEMA, DataError, Triplet
from causal_core.data.shards import Files
from causal_core.data.sources import files_of, split_selector
from causal_core.errors import UserError
from causal_core.files import file_digest
from causal_core.tokens.cache import ShardedCache, read_table, write_table
from causal_core.tokens.columns import TOKEN_SCHEMA
from causal_core.tokens.prompts import EncoderSource
from causal_core.tokens.rows import INJECTION_SPANS, INJECTION_TOKENS, SPANS, tokens_of
from causal_core.tokens.tokenise import Progress, tokenise
from causal_core.tokens.triplet import TripletTokens

_FORMAT = 3  # of the cache, its cut into shards included


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
        return _numbers(self.table.column("size_bound"))

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
        return bool(pc.min(lengths).as_py() == 0)

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
    encoder: EncoderSource,
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
        progress: Called with the rows that are tokenised.
        columns: Where rows of another layout have our fields, by field.

    Raises:
        DataError: a bad row, a text without tokens, no rows, or too long a row.
    """
    if not paths:
        raise UserError("no triplet files given: set data.train (and data.validation, data.test)")
    files = Files(list(paths), ColumnPaths(columns), unanswered)
    key = cache_key(files, encoder, cache)
    table = read_tokens(key, cache)
    if table is None:
        shards = ShardedCache(cache / "tokens" / key)
        tokenise(files, encoder.made(), shards, progress)
        table = shards.read()
        assert table is not None
    too_long = _numbers(table.column("longest")) > max_length
    count = int(too_long.sum())
    if count:
        ids = table.filter(pa.array(too_long)).column("id").to_pylist()
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
        table = rows_of(table, pa.chunked_array([pa.array(~too_long)]), target)
        key = f"{key}<= {max_length}"
    return TripletDataset(table, key)


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    """A column of numbers, none of them missing, [rows].

    pyarrow's own conversion, and comparing a column with a number, import pandas, which takes a
    third of a second.
    """
    chunks = [np.from_dlpack(chunk) for chunk in column.chunks if len(chunk)]
    return np.concatenate(chunks) if chunks else np.zeros(0, np.int32)


def rows_of(table: pa.Table, chosen: pa.ChunkedArray, target: Path) -> pa.Table:
    """The rows for which `chosen` is true, mapped from a cache file of their own."""
    kept = read_table(target)
    if kept is None:
        write_table(target, _chosen(table, chosen))
        kept = read_table(target)
        assert kept is not None
    return kept


def _chosen(table: pa.Table, chosen: pa.ChunkedArray) -> Iterator[pa.RecordBatch]:
    start = 0
    for batch in table.to_batches():
        mask = chosen.slice(start, batch.num_rows).combine_chunks()
        start += batch.num_rows
        # A cache of before says of benign_cf_input that it is in every row: the same columns.
        yield pa.RecordBatch.from_arrays(batch.columns, schema=TOKEN_SCHEMA).filter(mask)


def read_tokens(key: str, cache: Path) -> pa.Table | None:
    """The rows that are kept under a key; None where they are to be made."""
    # Earlier versions kept all rows in one file.
    single = read_table(cache / "tokens" / f"{key}.arrow")
    return ShardedCache(cache / "tokens" / key).read() if single is None else single


def cache_key(files: Files, encoder: EncoderSource, cache: Path) -> str:
    """sha256 of all that decides what is in the cache (`DataError`: a file cannot be read)."""
    digest = hashlib.sha256(json.dumps([_FORMAT, encoder.fingerprint()]).encode())
    if files.columns.paths:
        digest.update(json.dumps(files.columns.paths, sort_keys=True).encode())
    if files.unanswered:
        digest.update(b"answers may be missing")
    for path in files.paths:
        name, split = split_selector(path)
        try:
            for found in files_of(name):
                part = [found.part] if found.part else []
                key = [file_digest(found.path, cache), split, *part]
                digest.update(json.dumps(key).encode())
        except OSError as error:
            raise DataError.in_file(name, f"cannot be read: {error.strerror}") from error
    return digest.hexdigest()
