"""Tokenised triplets on disk: an Arrow file, memory-mapped, with random access by row.

A cache file is keyed by the content of the triplet files and of everything that decides how text
becomes tokens, so it can be stale in no way. Workers of a node share its pages; memory does not
grow with the number of rows.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from causal_core.data.reader import read_triplets
from causal_core.data.schema import TRIPLET_SCHEMA, DataError, Triplet
from causal_core.data.sources import split_selector
from causal_core.errors import UserError
from causal_core.files import CACHE_SETTING, file_digest, whole_or_absent, writes_to
from causal_core.tokens.prompts import PromptEncoder, UnencodableTextError
from causal_core.tokens.triplet import TripletTokens
from causal_core.visible_text import quoted

_FORMAT = 2
_ROWS_PER_BATCH = 4096
_SPANS = (
    "system",
    "benign",
    "counterfactual",
    "injection",
    "benign_answer",
    "injection_answer",
    "witness",
)
_INPUTS = ("benign_input", "benign_cf_input", "injection_input")
_OUTPUTS = ("benign_output", "injection_output")
_SCHEMA = pa.schema(
    [
        *TRIPLET_SCHEMA,
        *(pa.field(f"{span}_tokens", pa.list_(pa.int32()), nullable=False) for span in _SPANS),
        pa.field("longest", pa.int32(), nullable=False),
    ]
)

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
Row = dict[str, Any]
_T = TypeVar("_T")


@dataclass(frozen=True)
class TripletDataset:
    """Rows of triplets with their tokens."""

    table: pa.Table
    fingerprint: str  # sha256 over the content of the files and the tokenisation

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def tokens(self, index: int) -> TripletTokens:
        """The token spans of one row."""
        row = {span: self.table.column(f"{span}_tokens")[index].as_py() for span in _SPANS}
        return TripletTokens(id=self.table.column("id")[index].as_py(), **row)

    def triplet(self, index: int) -> Triplet:
        """The texts of one row."""
        row = {name: self.table.column(name)[index].as_py() for name in TRIPLET_SCHEMA.names}
        return Triplet.from_row(row)

    def head(self, limit: int | None) -> TripletDataset:
        """The first rows; the fingerprint says so."""
        if limit is None or limit >= len(self):
            return self
        return TripletDataset(self.table.slice(0, limit), f"{self.fingerprint}[:{limit}]")

    def size_bounds(self) -> np.ndarray:
        """An upper bound of each row's tree nodes (`TripletTokens.size_bound`), [rows]."""
        lengths = {
            span: pc.list_value_length(self.table.column(f"{span}_tokens")).to_numpy()
            for span in _SPANS
            if span != "witness"
        }
        return sum(lengths.values()) + lengths["benign_answer"]

    def longest(self) -> int:
        """Tokens of the longest prompt with its answer."""
        return int(pc.max(self.table.column("longest")).as_py() or 0)

    def first_token_from(self, limit: int) -> tuple[str, int] | None:
        """The id of the first row with a token of `limit` or more, and that token."""
        for span in _SPANS:
            column = self.table.column(f"{span}_tokens")
            if (pc.max(pc.list_flatten(column)).as_py() or 0) < limit:
                continue
            for index, tokens in enumerate(column):
                if (token := max(tokens.as_py(), default=0)) >= limit:
                    return self.table.column("id")[index].as_py(), token
        return None

    def has_witness(self) -> bool:
        """Whether any row has a witness."""
        return bool(self.table.column("witness").null_count < len(self))

    def mean_tokens(self) -> float:
        """Mean over rows of the tokens of all spans, S counted once."""
        total = sum(
            pc.sum(pc.list_value_length(self.table.column(f"{span}_tokens"))).as_py() or 0
            for span in _SPANS
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
    on_dropped: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> TripletDataset:
    """Reads, checks and tokenises triplet files, or maps the cached result.

    Args:
        paths: Triplet files, each with an optional `#SPLIT`.
        max_length: Longest prompt + answer in tokens.
        overlong: `error`, or `drop`: leave such rows out and say which to `on_dropped`.
        cache: Directory of the cache files.
        progress: Called with (rows done, rows in all).

    Raises:
        DataError: a bad row, a text without tokens, no rows, or too long a row.
    """
    if not paths:
        raise UserError("no triplet files given: set data.train (and data.validation, data.test)")
    key = _cache_key(paths, encoder, cache)
    target = cache / "tokens" / f"{key}.arrow"
    cached = _read_cache(target)
    if cached is None:
        result = read_triplets(list(paths))
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
        table = _without_longer(table, max_length, cache / "tokens" / f"{key}-{max_length}.arrow")
        key = f"{key}<= {max_length}"
    return TripletDataset(table, key)


def _without_longer(table: pa.Table, max_length: int, target: Path) -> pa.Table:
    """The rows of at most `max_length` tokens, mapped from a cache file of their own."""
    kept = _read_cache(target)
    if kept is None:
        batches = table.to_batches()
        short = (b.filter(pc.less_equal(b.column("longest"), max_length)) for b in batches)
        _write_cache(target, short)
        kept = _read_cache(target)
        assert kept is not None
    return kept


def _cache_key(paths: Sequence[str], encoder: PromptEncoder, cache: Path) -> str:
    digest = hashlib.sha256(json.dumps([_FORMAT, encoder.fingerprint()]).encode())
    for path in paths:
        name, split = split_selector(path)
        try:
            content = file_digest(Path(name), cache)
        except OSError as error:
            raise DataError.in_file(name, f"cannot be read: {error.strerror}") from error
        digest.update(json.dumps([content, split]).encode())
    return digest.hexdigest()


def _tokenised(
    table: pa.Table, encoder: PromptEncoder, progress: Progress | None
) -> Iterator[pa.RecordBatch]:
    done = 0
    for batch in table.to_batches(max_chunksize=_ROWS_PER_BATCH):
        rows = batch.to_pylist()
        yield pa.RecordBatch.from_pylist(_token_rows(rows, encoder), schema=_SCHEMA)
        done += batch.num_rows
        if progress is not None:
            progress(done, table.num_rows)


def _token_rows(rows: Sequence[Row], encoder: PromptEncoder) -> list[Row]:
    """Rows with their token spans (`UserError` names the row that cannot be encoded)."""
    try:
        tokens = _Tokens.of(rows, encoder)
    except UnencodableTextError:
        for row in rows:  # which one: rare, so it is looked for only now
            try:
                _Tokens.of([row], encoder)
            except UnencodableTextError as error:
                raise UserError(f"triplet {quoted(row['id'])}: {error}") from error
        raise
    return [_token_row(row, encoder, tokens) for row in rows]


@dataclass(frozen=True)
class _Tokens:
    """Tokens of everything distinct that a batch of rows holds."""

    systems: Mapping[str, list[int]]
    prompts: Mapping[tuple[str, str], list[int]]
    answers: Mapping[str, list[int]]
    witnesses: Mapping[str, list[int]]

    @classmethod
    def of(cls, rows: Sequence[Row], encoder: PromptEncoder) -> _Tokens:
        def by_text(
            texts: Iterable[_T], encode: Callable[[list[_T]], list[list[int]]]
        ) -> dict[_T, list[int]]:
            distinct = list(dict.fromkeys(texts))
            return dict(zip(distinct, encode(distinct), strict=True))

        return cls(
            systems=by_text((row["system_instruction"] for row in rows), encoder.systems_ids),
            prompts=by_text(
                (_prompt(row, name, encoder) for row in rows for name in _INPUTS),
                encoder.prompts_ids,
            ),
            answers=by_text(
                (row[name] or "" for row in rows for name in _OUTPUTS), encoder.answers_ids
            ),
            witnesses=by_text(
                (row["witness"] for row in rows if row["witness"]), encoder.openings_ids
            ),
        )


def _prompt(row: Row, name: str, encoder: PromptEncoder) -> tuple[str, str]:
    return row["system_instruction"], encoder.user_turn(row[name], row["context"])


def _token_row(row: Row, encoder: PromptEncoder, tokens: _Tokens) -> Row:
    prompts = [tokens.prompts[_prompt(row, name, encoder)] for name in _INPUTS]
    # S ends where the three prompts part from it: a token that straddles its end belongs to U.
    shared = _common_prefix([tokens.systems[row["system_instruction"]], *prompts])
    witness = row["witness"]
    spans = {
        "system": shared,
        **{
            span: ids[len(shared) :]
            for span, ids in zip(("benign", "counterfactual", "injection"), prompts, strict=True)
        },
        "benign_answer": tokens.answers[row["benign_output"] or ""],
        "injection_answer": tokens.answers[row["injection_output"] or ""],
        "witness": tokens.witnesses[witness] if witness else [],
    }
    for name, ids in spans.items():
        if not ids and (name != "witness" or witness):
            raise UserError(f"triplet {quoted(row['id'])}: {name} has no tokens after tokenisation")
    longest = len(shared) + max(
        len(spans["benign"]) + len(spans["benign_answer"]),
        len(spans["counterfactual"]),
        len(spans["injection"])
        + max(len(spans["benign_answer"]), len(spans["injection_answer"]), len(spans["witness"])),
    )
    return {**row, **{f"{name}_tokens": ids for name, ids in spans.items()}, "longest": longest}


def _common_prefix(sequences: Sequence[list[int]]) -> list[int]:
    # What two sequences share is shared by all that sort between them.
    first, last = min(sequences), max(sequences)
    differing = (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    return first[: next(differing, len(first))]


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
