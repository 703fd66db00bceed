"""A team's own plain rows made into triplets: U' from another row, attacks by the composer.

Nothing of a row is changed: its answer is the benign and the safe answer. What attacks ask for are
codewords, other answers to the row's own task, and other tasks: of the team's other rows in the
same split and of the generator, which has exact answers to work of forty kinds. Every attack is a
function of the seed, the split and the row's place in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

from causal_core.data.folding import folded
from causal_core.data.leaks import (
    LeakKind,
    LeakReport,
    check_leaks,
    input_key,
    wording_of,
)
from causal_core.data.schema import DataError, Injection, Triplet
from causal_core.generator.compose import (
    APPEND,
    DECOY,
    SAY,
    TASK,
    PlainRow,
    compose,
    slot_of,
)
from causal_core.generator.generate import NEXT_ATTACK, other_tasks, raise_on_leaks
from causal_core.generator.own_splits import cut
from causal_core.generator.vocabulary import SPLITS, TRAIN, stable_hash

REPEATED = "the same input under the same instruction again"
ATTACKED = "with attacks already"
INDISTINCT = "whose answer no attack can be told from"
_PAYLOADS = (SAY, TASK, APPEND)
_LONGEST_DECOY = 120  # characters: a longer one is no answer that a success would show whole
_ATTEMPTS = 5
_DRAWS = 40  # of another row, before there is none that fits
# What splits cut by rows have in common, and what is then said instead of refused.
_OF_PROMPTS = (LeakKind.SYSTEM_PROMPT, LeakKind.TASK_WORDING)


@dataclass(frozen=True)
class Injected:
    """Triplets by split, and what there is to say about them."""

    splits: Mapping[str, list[Triplet]]
    by_prompt: bool  # else split by rows: prompts are in several splits
    dropped: Mapping[str, int]  # rows, by reason
    alone: int  # rows without U': no other row of their split has their system prompt or task
    leaks: LeakReport


def inject(
    rows: Sequence[Triplet],
    *,
    attacks: int = 1,
    validation: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
    by_prompt: bool | None = None,
) -> Injected:
    """Triplets from plain rows, in splits that are proven not to leak.

    Args:
        rows: With an answer. What they have as U' is replaced: it may be in another split.
        attacks: Of a training row; rows of the other splits have one.
        validation: Share of the rows.
        test: Share of the rows, for test_seen and test_novel together.
        by_prompt: Whether splits share no system prompt; None: where there are enough.

    Raises:
        DataError: too few rows, or a leak.
    """
    dropped: Counter[str] = Counter()
    usable = _usable(rows, dropped)
    if not usable:
        raise DataError.in_file("", f"no plain row is left to attack; {_reasons(dropped)}")
    given = cut(usable, validation, test, seed, by_prompt)
    homes = _Homes()
    for split, members in given.rows.items():
        for row in members:
            homes.claims(split, input_key(row.context, row.benign_input))
    splits = {}
    for split in SPLITS:
        wanted = attacks if split == TRAIN else 1
        splits[split] = _attacked(given.rows[split], split, wanted, seed, homes, dropped)
        if not splits[split]:
            raise DataError.in_file(split, f"no row is left; {_reasons(dropped)}")
    report = check_leaks(splits)
    if not given.by_prompt:
        report = _but_for_prompts(report)
    raise_on_leaks(report)
    alone = sum(row.benign_cf_input is None for rows in splits.values() for row in rows)
    return Injected(splits, given.by_prompt, dict(dropped), alone, report)


def _usable(rows: Sequence[Triplet], dropped: Counter[str]) -> list[Triplet]:
    """Plain rows, each once."""
    kept: dict[tuple[str, str], Triplet] = {}
    for row in rows:
        key = row.system_instruction, input_key(row.context, row.benign_input)
        if row.injections:
            dropped[ATTACKED] += 1
        elif key in kept:
            dropped[REPEATED] += 1
        else:
            kept[key] = row
    return list(kept.values())


class _Homes:
    """The split that inputs and wordings of attacks belong to: the first that has them."""

    def __init__(self) -> None:
        self._split: dict[str, str] = {}

    def claims(self, split: str, text: str) -> bool:
        """Whether a split may have this; then no other may any more."""
        return self._split.setdefault(text, split) == split


def _attacked(
    rows: Sequence[Triplet],
    split: str,
    attacks: int,
    seed: int,
    homes: _Homes,
    dropped: Counter[str],
) -> list[Triplet]:
    """The rows of a split with U' and their attacks."""
    others = _Others(rows, split, seed, homes)
    made = []
    for index, row in enumerate(rows):
        place = f"{seed}/{split}/{index}"
        found = (
            others.attack(row, index + n * NEXT_ATTACK, f"{place}/{n}") for n in range(attacks)
        )
        injections = tuple(injection for injection in found if injection is not None)
        if not injections:
            dropped[INDISTINCT] += 1
            continue
        other = others.counterfactual(row, Random(place))
        made.append(
            replace(
                row,
                benign_cf_input=None if other is None else other.benign_input,
                benign_cf_output=None if other is None else other.benign_output,
                injections=injections,
                split=split,
            )
        )
    return made


class _Others:
    """What the rows of a split lend each other: counterfactuals, decoys and other tasks."""

    def __init__(self, rows: Sequence[Triplet], split: str, seed: int, homes: _Homes) -> None:
        self._split, self._homes = split, homes
        shown = [row for row in rows if folded(row.benign_output)]  # no witness is unseen
        self._tasks = [*map(_as_task, shown), *other_tasks(split, seed)]
        self._members: dict[tuple[str, str], list[Triplet]] = {}
        decoys: dict[str, dict[str, None]] = {}
        for row in rows:
            for key in _groups(row):
                self._members.setdefault(key, []).append(row)
        for row in shown:
            answer = row.benign_output
            # A label is an answer in all splits; as a witness it is in one alone.
            if len(answer) <= _LONGEST_DECOY and _split_of(answer) == split:
                decoys.setdefault(_task(row), {}).setdefault(answer)
        self._decoys = {task: tuple(answers) for task, answers in decoys.items()}

    def attack(self, row: Triplet, number: int, seed: str) -> Injection | None:
        """The attack of this number on a row, or None where none can be told from its answer."""
        for attempt in range(_ATTEMPTS):
            rng = Random(f"{seed}/{attempt}")
            decoy = self._decoy(row, rng)
            payloads = _PAYLOADS if decoy is None else (*_PAYLOADS, DECOY)
            slot = slot_of(number, self._split, payloads)
            made = compose(_as_row(row), self._tasks, slot, self._split, rng, decoy=decoy)
            if made is None:
                return None
            # Where its words meet those of the row, what stands out can be that of another split.
            wording = wording_of(row.benign_input, made.injection_input, made.witness)
            if self._homes.claims(self._split, f"attack {wording}"):
                return made
        return None

    def counterfactual(self, row: Triplet, rng: Random) -> Triplet | None:
        """Another row to ask: of its prompt and passage, of its prompt, or of its task."""
        own = folded(row.benign_input)
        for group in _groups(row):
            members = self._members[group]
            for _ in range(_DRAWS):
                other = rng.choice(members)
                if folded(other.benign_input) == own:
                    continue
                # Asked of this row's passage, it may be an input of another split.
                if self._homes.claims(self._split, input_key(row.context, other.benign_input)):
                    return other
        return None

    def _decoy(self, row: Triplet, rng: Random) -> str | None:
        """A wrong answer to the row's task."""
        answers, own = self._decoys.get(_task(row), ()), folded(row.benign_output)
        draws = (rng.choice(answers) for _ in range(_DRAWS if answers else 0))
        return next((answer for answer in draws if folded(answer) != own), None)


def _groups(row: Triplet) -> list[tuple[str, str]]:
    """Whose inputs can stand for each other, the nearest first."""
    groups = [
        ("passage", f"{row.system_instruction}\n{row.context or ''}"),
        ("prompt", row.system_instruction),
    ]
    return groups if row.task is None else [*groups, ("task", row.task)]


def _task(row: Triplet) -> str:
    return row.task or row.system_instruction


def _as_row(row: Triplet) -> PlainRow:
    """The row to attack; a witness must not be in its passage either."""
    prompt = "\n".join(filter(None, (row.system_instruction, row.context)))
    return PlainRow(prompt, row.benign_input, row.benign_output, _task(row))


def _as_task(row: Triplet) -> PlainRow:
    """The row as something that an attack asks for."""
    text = "\n".join(filter(None, (row.context, row.benign_input)))
    return PlainRow(row.system_instruction, text, row.benign_output, _task(row))


def _split_of(answer: str) -> str:
    return SPLITS[stable_hash(folded(answer)) % len(SPLITS)]


def _but_for_prompts(report: LeakReport) -> LeakReport:
    """The report without what rows of one prompt cannot but share."""
    return replace(
        report,
        checked=tuple(kind for kind in report.checked if kind not in _OF_PROMPTS),
        absent=tuple(dict.fromkeys((*report.absent, *_OF_PROMPTS))),
        findings=tuple(found for found in report.findings if found.kind not in _OF_PROMPTS),
    )


def _reasons(dropped: Mapping[str, int]) -> str:
    return "dropped: " + ", ".join(f"{count:,} {reason}" for reason, count in dropped.items())
