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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from causal_core.data.reader import read_triplets
from causal_core.data.schema import INJECTIONS, TRIPLET_SCHEMA, DataError, Triplet
from causal_core.data.sources import files_of, split_selector
from causal_core.errors import UserError
from causal_core.files import CACHE_SETTING, file_digest, whole_or_absent, writes_to
from causal_core.tokens.prompts import PromptEncoder, UnencodableTextError
from causal_core.tokens.triplet import InjectionTokens, TripletTokens
from causal_core.visible_text import quoted

_FORMAT = 3
_ROWS_PER_BATCH = 4096
_SPANS = ("system", "benign", "counterfactual", "benign_answer")
_INJECTION_SPANS = ("prompt", "answer", "witness", "attack_answer")
_TOKENS = pa.list_(pa.int32())
_INJECTION_TOKENS = "injection_tokens"
_SCHEMA = pa.schema(
    [
        *TRIPLET_SCHEMA,
        *(pa.field(f"{span}_tokens", _TOKENS, nullable=False) for span in _SPANS),
        pa.field(
            _INJECTION_TOKENS,
            pa.list_(pa.struct([pa.field(s, _TOKENS, nullable=False) for s in _INJECTION_SPANS])),
            nullable=False,
        ),
        pa.field("longest", pa.int32(), nullable=False),
        pa.field("size_bound", pa.int32(), nullable=False),
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
    injections: int | None = None  # of a row at most: its first ones

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def tokens(self, index: int) -> TripletTokens:
        """The token spans of one row."""
        row = {span: self.table.column(f"{span}_tokens")[index].as_py() for span in _SPANS}
        injections = self.table.column(_INJECTION_TOKENS)[index].as_py()[: self.injections]
        return TripletTokens(
            id=self.table.column("id")[index].as_py(),
            injections=tuple(InjectionTokens(**spans) for spans in injections),
            **row,
        )

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
        if span in _SPANS:
            return self.table.column(f"{span}_tokens")
        return pc.struct_field(pc.list_flatten(self.table.column(_INJECTION_TOKENS)), span)

    def first_token_from(self, limit: int) -> tuple[str, int] | None:
        """The id of the first row with a token of `limit` or more, and that token."""
        if not any(
            (pc.max(pc.list_flatten(self._all(span))).as_py() or 0) >= limit
            for span in (*_SPANS, *_INJECTION_SPANS)
        ):
            return None
        for row in range(len(self)):
            tokens = self.tokens(row)
            spans = [getattr(tokens, span) for span in _SPANS]
            spans += [getattr(i, span) for i in tokens.injections for span in _INJECTION_SPANS]
            largest = max((token for span in spans for token in span), default=0)
            if largest >= limit:
                return tokens.id, largest
        return None

    def without_counterfactual(self) -> int:
        """How many rows have no U'."""
        return int(self.table.column("benign_cf_input").null_count)

    def has_witness(self) -> bool:
        """Whether any injection has a witness."""
        witnesses = pc.struct_field(pc.list_flatten(self.table.column(INJECTIONS)), "witness")
        return bool(witnesses.null_count < witnesses.length())

    def mean_tokens(self) -> float:
        """Mean over rows of the tokens of all spans but witnesses, S counted once."""
        total = sum(
            pc.sum(pc.list_value_length(self._all(span))).as_py() or 0
            for span in (*_SPANS, *_INJECTION_SPANS)
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
        # A cache of before says of benign_cf_input that it is in every row: the same columns.
        batches = (
            pa.RecordBatch.from_arrays(b.columns, schema=_SCHEMA) for b in table.to_batches()
        )
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
            for file, part in files_of(Path(name)):
                key = [file_digest(file, cache), split, *([part] if part else [])]
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
                (_prompt(row, text, encoder) for row in rows for text in _inputs(row)),
                encoder.prompts_ids,
            ),
            answers=by_text(
                (answer for row in rows for answer in _outputs(row)), encoder.answers_ids
            ),
            witnesses=by_text(
                (i["witness"] for row in rows for i in row[INJECTIONS] if i["witness"]),
                encoder.openings_ids,
            ),
        )


def _inputs(row: Row) -> list[str]:
    """U, U' if there is one, and every U*."""
    injected = [injection["injection_input"] for injection in row[INJECTIONS]]
    counterfactual = [row["benign_cf_input"]] if row["benign_cf_input"] is not None else []
    return [row["benign_input"], *counterfactual, *injected]


def _outputs(row: Row) -> list[str]:
    answers = [row["benign_output"]]
    for injection in row[INJECTIONS]:
        answers.append(injection["injection_output"])
        if wanted := _wanted(injection):
            answers.append(wanted)
    return answers


def _wanted(injection: Row) -> str | None:
    """What the attack wants to be answered; the witness where nothing else is known."""
    return injection["attack_output"] or injection["witness"]


def _prompt(row: Row, text: str, encoder: PromptEncoder) -> tuple[str, str]:
    return row["system_instruction"], encoder.user_turn(text, row["context"])


def _token_row(row: Row, encoder: PromptEncoder, tokens: _Tokens) -> Row:
    prompts = [tokens.prompts[_prompt(row, text, encoder)] for text in _inputs(row)]
    # S ends where the prompts part from it: a token that straddles its end belongs to U.
    shared = _common_prefix([tokens.systems[row["system_instruction"]], *prompts])
    benign, *others = (ids[len(shared) :] for ids in prompts)
    counterfactual = others.pop(0) if row["benign_cf_input"] is not None else []
    found = TripletTokens(
        id=row["id"],
        system=shared,
        benign=benign,
        counterfactual=counterfactual,
        benign_answer=tokens.answers[row["benign_output"]],
        injections=tuple(
            InjectionTokens(
                prompt=ids,
                answer=tokens.answers[injection["injection_output"]],
                witness=tokens.witnesses.get(injection["witness"], []),
                attack_answer=tokens.answers.get(_wanted(injection) or "", []),
            )
            for ids, injection in zip(others, row[INJECTIONS], strict=True)
        ),
    )
    _refuse_empty(row, found)
    paths = [len(found.benign) + len(found.benign_answer), len(found.counterfactual)]
    for i in found.injections:
        answers = (found.benign_answer, i.answer, i.witness, i.attack_answer)
        paths.append(len(i.prompt) + max(map(len, answers)))
    spans = {f"{name}_tokens": getattr(found, name) for name in _SPANS}
    return {
        **row,
        **spans,
        _INJECTION_TOKENS: [vars(injection) for injection in found.injections],
        "longest": len(shared) + max(paths),
        "size_bound": found.size_bound(),
    }


def _refuse_empty(row: Row, found: TripletTokens) -> None:
    """No span of tokens may be empty, but of what the row does not have."""
    spans = [
        (name, getattr(found, name))
        for name in _SPANS
        if name != "counterfactual" or row["benign_cf_input"] is not None
    ]
    for tokens, injection in zip(found.injections, row[INJECTIONS], strict=True):
        spans += [("injection", tokens.prompt), ("injection_answer", tokens.answer)]
        if injection["witness"]:
            spans.append(("witness", tokens.witness))
        if injection["attack_output"]:
            spans.append(("attack_answer", tokens.attack_answer))
    for name, ids in spans:
        if not ids:
            raise UserError(f"triplet {quoted(row['id'])}: {name} has no tokens after tokenisation")


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
