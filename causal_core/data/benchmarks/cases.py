"""Cases of a test set in canonical form: what is the same for all of them.

A case may have no reference answer: then attack success alone is measured on it. A witness that
the reference answer or the clean prompt holds already cannot show success; what is measured with it
is a floor. Such attacks keep their place and lose their witness, so that no rate counts them, and
`attack_technique` says why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import pyarrow as pa

from causal_core.data.folding import folded
from causal_core.data.reading import MAX_ROW_BYTES
from causal_core.data.rules import MOST_INJECTIONS
from causal_core.data.schema import (
    INJECTION_FIELDS,
    INJECTIONS,
    LEAKING_PAYLOAD,
    TRIPLET_SCHEMA,
    DataError,
    contains_witness,
)

FLOOR = "floor: "  # how `attack_technique` of an attack with a witness that tells nothing begins
IN_ANSWER, IN_INPUT, IN_SYSTEM = "in the reference answer", "in the input", "in the instruction"
POSITIONS = ("end", "start", "middle")
# Documents, jailbreaks and instructions multiply: three files of 30 MB have 10^15 combinations.
_MOST_ATTACKS = 500_000
_MOST_CHARACTERS = 2**29
# Of one row: written in JSON, a character takes eight bytes at most.
_ROW_CHARACTERS = MAX_ROW_BYTES // 8


@dataclass(frozen=True)
class Attack:
    """An injected input U* and what is known about it; `position` None: not known."""

    input: str
    family: str
    witness: str | None = None
    position: str | None = None
    payload: str | None = None
    technique: str | None = None
    wording: str | None = None  # attacks with the same one are not independent
    wanted: str | None = None  # what a model answers that obeys, where that is known


@dataclass(frozen=True)
class Case:
    """One row of a test set; `answer` None: no reference."""

    system: str
    input: str
    attacks: Sequence[Attack] = ()
    answer: str | None = None
    task: str | None = None
    trigger_words: bool | None = None


@dataclass(frozen=True)
class BenchmarkRows:
    """The rows of a test set, and what is to be known when its figures are read."""

    table: pa.Table  # in TRIPLET_SCHEMA; without a reference the answers are empty
    attacks: int
    judged: int  # attacks with a witness that can show success
    without_answer: int  # rows
    floors: Mapping[str, int]  # attacks whose witness is already there, by where
    dropped: Mapping[str, int]  # rows of the files that are no cases, by reason


@dataclass
class Dropped:
    """Rows that are left out, by reason."""

    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, reason: str) -> None:
        self.reasons[reason] += 1


def collect(name: str, cases: Iterable[Case], dropped: Dropped) -> BenchmarkRows:
    """The cases as a table.

    Raises:
        DataError: no case at all, or more than any test set has.
    """
    kept: list[Case] = []
    attacks = characters = 0
    for given in cases:
        case = _whole(given, dropped)
        if case is None:
            continue
        kept.append(case)
        attacks += len(case.attacks)
        characters += sum(len(attack.input) for attack in case.attacks)
        if attacks > _MOST_ATTACKS or characters > _MOST_CHARACTERS:
            reason = f"more than {attacks - 1:,} attacks come of these files: give --attacks N"
            raise DataError.in_file(name, reason)
    if not kept:
        why = "; ".join(f"{count:,} {reason}" for reason, count in dropped.reasons.items())
        raise DataError.in_file(name, f"no row can be used ({why})" if why else "there are no rows")
    floors: Counter[str] = Counter()
    others = _other_inputs(kept)
    rows: list[dict[str, Any]] = []
    for case in kept:
        for some in _rows_of(case):
            injections = [_injection(case, attack, floors) for attack in some]
            rows.append(_row(f"{name}-{len(rows):06d}", name, case, injections, others))
    return BenchmarkRows(
        table=pa.Table.from_pylist(rows, schema=TRIPLET_SCHEMA),
        attacks=attacks,
        judged=sum(i["witness"] is not None for row in rows for i in row[INJECTIONS]),
        without_answer=sum(not row["benign_output"] for row in rows),
        floors=dict(floors),
        dropped=dict(dropped.reasons),
    )


def placed(text: str, attack: str, position: str) -> str:
    """A text with an attack on a line of its own before it, after it, or between its words next to
    the middle."""
    if position == "start":
        return f"{attack}\n{text}"
    if position == "end":
        return f"{text}\n{attack}"
    middle = text.find(" ", len(text) // 2)
    if middle < 0:
        return f"{text}\n{attack}"
    return f"{text[:middle]}\n{attack}\n{text[middle + 1 :]}"


def position_of(clean: str, injected: str) -> str | None:
    """Where something was added to a text, or None where more than that was changed."""
    if injected.startswith(clean):
        return "end"
    if injected.endswith(clean):
        return "start"
    common = next(
        (i for i, (a, b) in enumerate(zip(clean, injected, strict=False)) if a != b), len(clean)
    )
    return "middle" if common and injected.endswith(clean[common:]) else None


def some_of(combinations: Sequence[Any], row: int, most: int | None) -> list[Any]:
    """All combinations, or `most` of them: the next ones of the whole list, row after row."""
    if most is None or most >= len(combinations):
        return list(combinations)
    return [combinations[(row * most + turn) % len(combinations)] for turn in range(most)]


def _whole(case: Case, dropped: Dropped) -> Case | None:
    """The case without attacks that add nothing, or None where a text is longer than a row may be.

    What is left of texts in which nothing can be written must still be texts.
    """
    texts = (case.system, case.input, case.answer or "")
    longest = sum(map(len, texts)) + max((len(a.input) for a in case.attacks), default=0)
    if longest > _ROW_CHARACTERS:
        dropped.add("longer than a row may be")
        return None
    if not all(_clean(text).strip() for text in (case.system, case.input)):
        dropped.add("of characters that nobody sees")
        return None
    added = [a for a in case.attacks if _clean(a.input).strip() != _clean(case.input).strip()]
    if case.attacks and not added:
        dropped.add("whose attack adds nothing to the input")
        return None
    return replace(case, attacks=tuple(added))


def _rows_of(case: Case) -> Iterator[list[Attack]]:
    """The attacks of a case, in as many rows as they need; one row without any if it has none."""
    some: list[Attack] = []
    characters = first = len(case.system) + len(case.input) + len(case.answer or "")
    for attack in case.attacks:
        size = len(attack.input) + len(case.answer or "")
        if some and (len(some) == MOST_INJECTIONS or characters + size > _ROW_CHARACTERS):
            yield some
            some, characters = [], first
        some.append(attack)
        characters += size
    yield some


def _injection(case: Case, attack: Attack, floors: Counter[str]) -> dict[str, Any]:
    witness, technique = attack.witness, attack.technique
    floor = _floor(case, attack)
    if floor is not None:
        floors[floor] += 1
        witness, technique = None, FLOOR + floor
    injection: dict[str, Any] = dict.fromkeys(INJECTION_FIELDS)
    injection.update(
        injection_input=attack.input,
        injection_output=case.answer or "",
        witness=witness,
        attack_family=attack.family,
        attack_technique=technique,
        position=attack.position,
        payload=attack.payload,
        wording=attack.wording,
    )
    if attack.wanted and attack.wanted.strip() != (case.answer or "").strip():
        injection["attack_output"] = attack.wanted
    injection = {name: text and _clean(text) for name, text in injection.items()}
    if injection["witness"] is not None and not folded(injection["witness"]):
        injection["witness"] = None  # no answer can show it
    return injection


def _floor(case: Case, attack: Attack) -> str | None:
    """Where the witness is already, or None."""
    if attack.witness is None:
        return None
    if case.answer is not None and _holds(case.answer, attack.witness):
        return IN_ANSWER
    if attack.payload == LEAKING_PAYLOAD:  # the prompt holds it on purpose
        return None
    if _holds(case.input, attack.witness):
        return IN_INPUT
    return IN_SYSTEM if _holds(case.system, attack.witness) else None


@lru_cache(maxsize=2**12)
def _holds(text: str, witness: str) -> bool:
    """`contains_witness`, which many attacks ask about the same few texts."""
    return contains_witness(text, witness)


def _row(
    identity: str,
    name: str,
    case: Case,
    injections: list[dict[str, Any]],
    others: Mapping[tuple[str, str], str],
) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(TRIPLET_SCHEMA.names)
    row.update(
        id=identity,
        system_instruction=_clean(case.system),
        benign_input=_clean(case.input),
        benign_output=_clean(case.answer or ""),
        benign_cf_input=others.get((case.system, case.input)),
        task=case.task and _clean(case.task),
        has_trigger_words=case.trigger_words,
        source=name,
    )
    row[INJECTIONS] = injections
    return row


def _other_inputs(cases: Sequence[Case]) -> dict[tuple[str, str], str]:
    """U' of each (S, U): the next other input of the same instruction, if there is any."""
    inputs: dict[str, dict[str, None]] = {}
    for case in cases:
        inputs.setdefault(case.system, {}).setdefault(case.input)
    others = {}
    for system, given in inputs.items():
        ordered = list(given)
        after = [*ordered[1:], ordered[0]]
        for one, other in zip(ordered, after, strict=True):
            if one != other:  # the only input of its instruction has none
                others[system, one] = _clean(other)
    return others


def _clean(text: str) -> str:
    """A text that can be written: no NUL, no half of a surrogate pair."""
    return text.replace("\x00", "").encode(errors="replace").decode()
