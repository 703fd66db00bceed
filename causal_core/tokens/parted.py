"""Prompts of many rows in parts: a system text that many of them share is tokenised once.

Where the template writes a control token between S and U, the ids of a prompt are those up to that
token and those from it on (`Encoding.cut`). A prompt with anything that had to be made safe is
tokenised as a whole, and so is every prompt of its row.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from causal_core.tokens.prompts import PromptEncoder
from causal_core.tokens.ragged import Ragged

_T = TypeVar("_T", bound=Hashable)


class PartedPrompts(NamedTuple):
    """A prompt of a row is `head` + `rest`; `head` + `opening` are the tokens up to where the
    user's turn begins, of which an input may change the last."""

    head: Ragged  # [rows]
    opening: Ragged  # [rows]
    rest: Ragged  # [prompts]


def parted_prompts(
    encoder: PromptEncoder, systems: Sequence[str], turns: Sequence[str], row_of: np.ndarray
) -> PartedPrompts:
    """Tokens of prompts (`UnencodableTextError` as of `PromptEncoder.prompts`).

    Args:
        systems: S of each row.
        turns: The user turn of each prompt.
        row_of: The row of each prompt.
    """
    t = encoder.template
    cut = encoder.encoding.cut(t.between)
    if cut is None:
        return _whole(encoder, systems, turns, row_of)
    system, distinct = numbered(map(t.trim_system, systems))
    head, fine_heads = encoder.first_try((t.before, t.between[:cut]), [(s,) for s in distinct])
    turn, distinct = numbered(map(t.trim_user, turns))
    rest, fine_rests = encoder.first_try((t.between[cut:], t.after), [(u,) for u in distinct])
    opening = Ragged.of([encoder.encoding.of_literal(t.between[cut:])])
    fine = fine_heads[system]
    np.logical_and.at(fine, row_of, fine_rests[turn])
    if fine.all():
        of_rows = np.zeros(len(systems), np.int64)
        return PartedPrompts(head.take(system), opening.take(of_rows), rest.take(turn))
    odd, odd_prompts = np.flatnonzero(~fine), np.flatnonzero(~fine[row_of])
    place = np.cumsum(~fine) - 1  # of an odd row among the odd ones
    whole = _whole(
        encoder,
        [systems[row] for row in odd.tolist()],
        [turns[prompt] for prompt in odd_prompts.tolist()],
        place[row_of[odd_prompts]],
    )
    system[odd] = len(head) + np.arange(len(odd))
    turn[odd_prompts] = len(rest) + np.arange(len(odd_prompts))
    of_rows = np.where(fine, 0, 1 + place)
    return PartedPrompts(
        Ragged.joined([head, whole.head]).take(system),
        Ragged.joined([opening, whole.opening]).take(of_rows),
        Ragged.joined([rest, whole.rest]).take(turn),
    )


def numbered(values: Iterable[_T]) -> tuple[np.ndarray, list[_T]]:
    """The number of each value among the distinct ones, in the order of the first, and those."""
    numbers: dict[_T, int] = {}
    codes = [numbers.setdefault(value, len(numbers)) for value in values]
    return np.array(codes, np.int64), list(numbers)


def _whole(
    encoder: PromptEncoder, systems: Sequence[str], turns: Sequence[str], row_of: np.ndarray
) -> PartedPrompts:
    system, distinct = numbered(systems)
    prompt, pairs = numbered(
        (systems[row], turn) for row, turn in zip(row_of.tolist(), turns, strict=True)
    )
    return PartedPrompts(
        Ragged.of([[]] * len(systems)),
        encoder.systems(distinct).take(system),
        encoder.prompts(pairs).take(prompt),
    )
