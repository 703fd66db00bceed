"""Batches of canonical rows with their token spans, as columns: the form of the token cache.

The same tokens as `rows.token_rows` makes row by row, for thousands of rows at once: a text that
comes again is tokenised once, and spans are cut and laid out by NumPy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from causal_core.data.schema import INJECTIONS, TRIPLET_SCHEMA
from causal_core.tokens.parted import numbered, parted_prompts
from causal_core.tokens.prompts import PromptEncoder, UnencodableTextError
from causal_core.tokens.ragged import TOKEN_LIST, Ragged
from causal_core.tokens.rows import INJECTION_SPANS, INJECTION_TOKENS, SPANS, token_rows

_OF_INJECTION = pa.struct([pa.field(name, TOKEN_LIST, nullable=False) for name in INJECTION_SPANS])
TOKEN_SCHEMA = pa.schema(
    [
        *TRIPLET_SCHEMA,
        *(pa.field(f"{span}_tokens", TOKEN_LIST, nullable=False) for span in SPANS),
        pa.field(INJECTION_TOKENS, pa.list_(_OF_INJECTION), nullable=False),
        pa.field("longest", pa.int32(), nullable=False),
        pa.field("size_bound", pa.int32(), nullable=False),
    ]
)


def with_tokens(batch: pa.RecordBatch, encoder: PromptEncoder) -> pa.RecordBatch:
    """A batch in `TRIPLET_SCHEMA` with the columns of its tokens.

    Raises:
        UserError: names the row that cannot be encoded, or of which a text has no tokens.
    """
    try:
        return _tokenised(batch, encoder)
    except (UnencodableTextError, _EmptySpanError):
        token_rows(batch.to_pylist(), encoder)  # says of which row
        raise


class _EmptySpanError(Exception):
    """A text without tokens."""


def _tokenised(batch: pa.RecordBatch, encoder: PromptEncoder) -> pa.RecordBatch:
    rows = batch.num_rows
    systems, contexts, benign, others, outputs = (
        batch.column(name).to_pylist()
        for name in (
            "system_instruction", "context", "benign_input", "benign_cf_input", "benign_output",
        )
    )  # fmt: skip
    injections = batch.column(INJECTIONS)
    counts = pc.list_value_length(injections).to_numpy(zero_copy_only=False).astype(np.int64)
    injected, safe, wanted, witness = (
        pc.struct_field(injections.flatten(), name).to_pylist()
        for name in ("injection_input", "injection_output", "attack_output", "witness")
    )
    of_injection = np.repeat(np.arange(rows), counts)
    with_other = np.flatnonzero([other is not None for other in others])

    # U of all rows, U' of those that have one, U* of all injections.
    row_of = np.concatenate([np.arange(rows), with_other, of_injection])
    inputs = [*benign, *(others[row] for row in with_other), *injected]
    turns = [
        encoder.user_turn(text, contexts[row])
        for text, row in zip(inputs, row_of.tolist(), strict=True)
    ]
    prompts = parted_prompts(encoder, systems, turns, row_of)
    # S ends where the prompts part from it: a token that straddles its end belongs to U.
    shared = prompts.opening.lengths
    np.minimum.at(shared, row_of, prompts.rest.shared_with(prompts.opening.take(row_of)))
    system = prompts.head.beside(prompts.opening.take(np.arange(rows), lengths=shared))
    # A row without U' takes the empty sequence behind all others.
    spans = prompts.rest.take(np.arange(len(row_of)), first=shared[row_of])
    spans, ends = Ragged.joined([spans, Ragged.of([[]])]), (rows, rows + len(with_other))
    other_of = np.full(rows, len(row_of))
    other_of[with_other] = np.arange(*ends)
    benign_span, other_span = spans.take(np.arange(rows)), spans.take(other_of)
    prompt = spans.take(np.arange(ends[1], len(row_of)))

    wanted = [attack or shown for attack, shown in zip(wanted, witness, strict=True)]
    answers = _encoded([*outputs, *safe, *wanted], encoder.answers)
    answer, safe_answer, attack_answer = (
        answers.take(np.arange(start, end))
        for start, end in (
            (0, rows), (rows, rows + len(safe)), (rows + len(safe), rows + 2 * len(safe)),
        )
    )  # fmt: skip
    witnesses = _encoded(witness, encoder.openings)
    for required in (system, benign_span, spans.take(other_of[with_other]), prompt):
        _refuse_empty(required, None)
    for found, texts in ((answer, outputs), (safe_answer, safe), (witnesses, witness),
                         (attack_answer, wanted)):  # fmt: skip
        _refuse_empty(found, texts)

    own = answer.lengths[of_injection]
    longest = np.maximum(benign_span.lengths + answer.lengths, other_span.lengths)
    answer_room = np.maximum.reduce(
        [own, safe_answer.lengths, witnesses.lengths, attack_answer.lengths]
    )
    np.maximum.at(longest, of_injection, prompt.lengths + answer_room)
    bound = system.lengths + benign_span.lengths + other_span.lengths + answer.lengths
    np.add.at(
        bound, of_injection,
        prompt.lengths + own + safe_answer.lengths + attack_answer.lengths,
    )  # fmt: skip
    tokens = pa.StructArray.from_arrays(
        [span.to_arrow() for span in (prompt, safe_answer, witnesses, attack_answer)],
        fields=list(_OF_INJECTION),
    )
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
    return pa.RecordBatch.from_arrays(
        [
            *batch.columns,
            *(span.to_arrow() for span in (system, benign_span, other_span, answer)),
            pa.ListArray.from_arrays(offsets, tokens),
            pa.array(system.lengths + longest, pa.int32()),
            pa.array(bound, pa.int32()),
        ],
        schema=TOKEN_SCHEMA,
    )


def _encoded(texts: Sequence[str | None], encode: Callable[[list[str]], Ragged]) -> Ragged:
    """Tokens of each text, none of one that is not there or empty."""
    codes, distinct = numbered(text or "" for text in texts)
    found = Ragged.joined([encode([text for text in distinct if text]), Ragged.of([[]])])
    places = np.cumsum([bool(text) for text in distinct], dtype=np.int64) - 1
    places[[not text for text in distinct]] = len(found) - 1
    return found.take(places[codes])


def _refuse_empty(spans: Ragged, texts: Sequence[str | None] | None) -> None:
    """No span may be empty, but of a text that is not there."""
    empty = spans.lengths == 0
    if texts is not None:
        empty &= np.array([bool(text) for text in texts], bool)
    if empty.any():
        raise _EmptySpanError
