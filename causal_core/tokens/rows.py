"""From canonical rows to rows with their token spans: what each text of a triplet becomes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from causal_core.data.schema import INJECTIONS
from causal_core.errors import UserError
from causal_core.tokens.prompts import PromptEncoder, UnencodableTextError
from causal_core.tokens.triplet import InjectionTokens, TripletTokens
from causal_core.visible_text import quoted

SPANS = ("system", "benign", "counterfactual", "benign_answer")
INJECTION_SPANS = ("prompt", "answer", "witness", "attack_answer")
INJECTION_TOKENS = "injection_tokens"

Row = dict[str, Any]
_T = TypeVar("_T")


def token_rows(rows: Sequence[Row], encoder: PromptEncoder) -> list[Row]:
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


def tokens_of(row: Row) -> TripletTokens:
    """The token spans of a row of `token_rows`."""
    return TripletTokens(
        id=row["id"],
        injections=tuple(InjectionTokens(**spans) for spans in row[INJECTION_TOKENS]),
        **{span: row[f"{span}_tokens"] for span in SPANS},
    )


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
        answers += [injection["injection_output"], _wanted(injection)]
    return [answer for answer in answers if answer]


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
        benign_answer=tokens.answers.get(row["benign_output"], []),
        injections=tuple(
            InjectionTokens(
                prompt=ids,
                answer=tokens.answers.get(injection["injection_output"], []),
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
    spans = {f"{name}_tokens": getattr(found, name) for name in SPANS}
    return {
        **row,
        **spans,
        INJECTION_TOKENS: [vars(injection) for injection in found.injections],
        "longest": len(shared) + max(paths),
        "size_bound": found.size_bound(),
    }


def _refuse_empty(row: Row, found: TripletTokens) -> None:
    """No span of tokens may be empty, but of what the row does not have."""
    spans = [("system", found.system), ("benign", found.benign)]
    if row["benign_cf_input"] is not None:
        spans.append(("counterfactual", found.counterfactual))
    if row["benign_output"]:
        spans.append(("benign_answer", found.benign_answer))
    for tokens, injection in zip(found.injections, row[INJECTIONS], strict=True):
        spans.append(("injection", tokens.prompt))
        if injection["injection_output"]:
            spans.append(("injection_answer", tokens.answer))
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
