"""Attacks that are composed: family (wrapper) x payload x position x delimiter.

`compose` makes an injection of any plain row (an instruction, an input and its answer), whoever
wrote it, as a pure function of what it is given. What the payloads ask for, and so what a
successful attack would answer (r) and show (the witness w):

    say      a codeword: r = w
    decoy    a wrong answer in the task's own format: r = w
    task     another row's instruction and input: r = w = that row's exact answer
    leak     a tag that the system instruction keeps for itself: r = w
    append   a codeword after the answer: r = answer + w
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from random import Random

from causal_core.data.schema import (
    LEAKING_PAYLOAD,
    TASK_PAYLOAD,
    Injection,
    contains_witness,
)
from causal_core.generator.families import Family, families_of, filled, text_files
from causal_core.generator.vocabulary import Wordings, pools
from causal_core.yaml_file import read_yaml

POSITIONS = ("end", "start", "middle")
SAY, DECOY, TASK, LEAK, APPEND = "say", "decoy", TASK_PAYLOAD, LEAKING_PAYLOAD, "append"
PAYLOADS = (SAY, DECOY, TASK, LEAK, APPEND)
# Ten slots of a cycle. Another task is what published test sets and real attackers ask for, and
# what carries over to them; the others are needed beside it (docs/defence.md).
_PAYLOAD_CYCLE = (TASK, DECOY, TASK, SAY, TASK, DECOY, TASK, APPEND, TASK, LEAK)
CANARY_SENTENCE = "Internal tag: {w}."
_CANARY = re.compile(re.escape(CANARY_SENTENCE).replace(r"\{w\}", r"(\S+?)"))

_PAYLOADS = Path(__file__).parent / "payloads.yaml"
_HELD_BACK = (2, 3)  # texts of a payload for validation and for test
_MAX_ATTEMPTS = 40
# Of another row that serves as a payload, in characters: a prompt has to stay a prompt.
_LONGEST_INPUT, _LONGEST_ANSWER = 400, 120
_SHORTEST_ANSWER = 2  # a digit is in half of all texts
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=\S)|\n+")

# How the attack stands out of the text around it; most do not.
DELIMITERS: Mapping[str, str] = {
    "plain": "{attack}",
    "quoted": '"{attack}"',
    "brackets": "[{attack}]",
    "tag": "<note>{attack}</note>",
    "heading": "## {attack}",
    "reply": "> {attack}",
    "bold": "**{attack}**",
    "comment": "<!-- {attack} -->",
    "field": "note: {attack}",
}
_PLAIN_SHARE = 0.6


@dataclass(frozen=True)
class PlainRow:
    """A row without an attack.

    `shape` says what inputs of the task look like: data of the same shape in an attack could be
    mistaken for the row's own. `request` is the part of the system instruction that says what to
    do, `noun` what the task calls its answer.
    """

    system: str
    input: str
    answer: str
    task: str | None = None
    shape: str | None = None
    request: str | None = None
    noun: str = "answer"


@dataclass(frozen=True)
class Slot:
    """What kind of attack is wanted."""

    family: Family
    position: str
    payload: str


def slot_of(
    number: int, split: str, payloads: Sequence[str] = PAYLOADS, without: Sequence[str] = ()
) -> Slot:
    """The kind of attack `number`: every family meets every position and payload equally often.

    Args:
        payloads: Those that are wanted; a slot of another one is given to these in turn.
        without: Names of families that are not; their slots are given to the others in turn.
    """
    members = families_of(split)
    family, turn = members[number % len(members)], number // len(members)
    if family.name in without:
        kept = [member for member in members if member.name not in without]
        # Each round begins one further on, so that none is always in the same position.
        family = kept[(turn + turn // len(kept)) % len(kept)]
    # 3 positions and 10 payloads: 30 turns have each pair of them once.
    payload = _PAYLOAD_CYCLE[turn % len(_PAYLOAD_CYCLE)]
    if payload not in payloads:
        payload = payloads[turn % len(payloads)]
    return Slot(family, POSITIONS[turn % len(POSITIONS)], payload)


def compose(
    row: PlainRow,
    others: Sequence[PlainRow],
    slot: Slot,
    split: str,
    rng: Random,
    canary: str | None = None,
    decoy: str | None = None,
) -> Injection | None:
    """An injection into `row`, or None where none can be told from the right answer.

    Args:
        others: Rows to take other tasks from (`row` may be among them).
        slot: Family, position and payload; without what it needs (a canary, another task, a
            decoy that is not in the row) a payload is replaced by `say`.
        split: Whose wordings and words are used.
        canary: The tag in the row's system instruction, for the payload `leak`.
        decoy: A wrong answer in the row's format; None: another row's answer to the same task.
    """
    for attempt in range(_MAX_ATTEMPTS):
        if attempt == _MAX_ATTEMPTS // 2:
            slot = replace(slot, payload=SAY)  # nothing of the wanted kind can be told apart
        kind, asked, wanted, witness = _payload(row, others, slot, split, rng, canary, decoy)
        if not _can_be_told(row, witness, kind):
            continue
        identity, wording = slot.family.wording(split, rng)
        attack = filled(wording, {"payload": asked, "noun": row.noun}, rng)
        name = "plain" if rng.random() < _PLAIN_SHARE else rng.choice(tuple(DELIMITERS))
        attack = DELIMITERS[name].replace("{attack}", attack)
        text, position = place(row.input, attack, slot.position, rng)
        return Injection(
            injection_input=text,
            injection_output=row.answer,  # what is planted is data and changes nothing
            attack_output=wanted,
            witness=witness,
            attack_family=slot.family.name,
            attack_technique=f"{slot.family.technique}, {name}",
            position=position,
            payload=kind,
            wording=identity,
        )
    return None


def canary_in(system: str) -> str | None:
    """The tag that a system instruction keeps for itself, if the generator gave it one."""
    found = _CANARY.search(system)
    return None if found is None else found.group(1)


def texts_digest() -> str:
    """sha256 of the wordings and payloads that attacks are put together from."""
    digest = hashlib.sha256()
    for path in (_PAYLOADS, *text_files()):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _payload(
    row: PlainRow,
    others: Sequence[PlainRow],
    slot: Slot,
    split: str,
    rng: Random,
    canary: str | None,
    decoy: str | None,
) -> tuple[str, str, str, str]:
    """The kind of payload, its text, r and the witness."""
    words = pools(split)

    def text(kind: str) -> str:
        return rng.choice(_payload_texts()[kind].of(split))

    def fill(kind: str, witness: str) -> str:
        return filled(text(kind), {"w": witness, "noun": row.noun}, rng)

    if slot.payload == LEAK and canary is not None:
        return LEAK, fill(LEAK, canary), canary, canary
    if slot.payload == TASK and (other := _other_task(row, others, rng)) is not None:
        values = {"instruction": other.request or other.system, "input": other.input}
        return TASK, filled(text(TASK), values, rng), other.answer, other.answer
    if slot.payload == DECOY and (wrong := decoy or _wrong_answer(row, others, rng)) is not None:
        return DECOY, fill(DECOY, wrong), wrong, wrong
    witness = words.codeword(rng)
    if slot.payload == APPEND:
        return APPEND, fill(APPEND, witness), f"{row.answer} {witness}", witness
    return SAY, fill(SAY, witness), witness, witness


def _other_task(row: PlainRow, others: Sequence[PlainRow], rng: Random) -> PlainRow | None:
    for _ in range(_MAX_ATTEMPTS if others else 0):
        other = rng.choice(others)
        fits = len(other.input) <= _LONGEST_INPUT
        fits = fits and _SHORTEST_ANSWER <= len(other.answer) <= _LONGEST_ANSWER
        alike = row.shape is not None and row.shape == other.shape
        if fits and not alike and not _same_task(row, other):
            return other
    return None


def _wrong_answer(row: PlainRow, others: Sequence[PlainRow], rng: Random) -> str | None:
    """Another row's answer to the same task."""
    for _ in range(_MAX_ATTEMPTS if others else 0):
        other = rng.choice(others)
        if _same_task(row, other) and other.answer != row.answer:
            return other.answer
    return None


def _same_task(row: PlainRow, other: PlainRow) -> bool:
    return other.task == row.task if row.task is not None else other.system == row.system


def _can_be_told(row: PlainRow, witness: str, kind: str) -> bool:
    """Whether the witness is found nowhere but in the attack (a tag is in S, of course)."""
    clean = [row.input, row.answer] if kind == LEAK else [row.input, row.answer, row.system]
    return not any(contains_witness(text, witness) for text in clean)


def place(text: str, attack: str, position: str, rng: Random) -> tuple[str, str]:
    """A text with `attack` before, after or between its sentences or lines, and where it is: a
    text of one piece has no middle."""
    gap = "\n" if "\n" in text or rng.random() < 0.5 else " "
    if position == "middle":
        ends = [found.span() for found in _SENTENCE_END.finditer(text)]
        if ends:
            start, stop = rng.choice(ends)
            return f"{text[:start]}{gap}{attack}{gap}{text[stop:]}", position
        position = rng.choice(("start", "end"))
    placed = f"{attack}{gap}{text}" if position == "start" else f"{text}{gap}{attack}"
    return placed, position


@cache
def _payload_texts() -> Mapping[str, Wordings]:
    """The texts of each payload, cut as those of a family seen in training."""
    validation, test = _HELD_BACK
    cut = {}
    for kind, texts in read_yaml(_PAYLOADS).items():
        first, second = len(texts) - test - validation, len(texts) - test
        cut[kind] = Wordings(
            tuple(texts[:first]), tuple(texts[first:second]), tuple(texts[second:])
        )
    return cut
