"""Cuts a team's own rows into splits that share no input and, where there are enough of them, no
system prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from causal_core.data.leaks import input_key, prompt_keys
from causal_core.data.schema import DataError, Triplet
from causal_core.generator.vocabulary import TEST_NOVEL, TEST_SEEN, TRAIN, VALIDATION

_TEST = "test"  # both test splits
# By prompts only where training keeps at least this part of the rows.
_LEAST_TRAINING = 0.5


@dataclass(frozen=True)
class OwnSplits:
    """The rows of each split, and whether no system prompt is in two of them (but the tests)."""

    rows: Mapping[str, Sequence[Triplet]]
    by_prompt: bool


def cut(
    rows: Sequence[Triplet], validation: float, test: float, seed: int, by_prompt: bool | None
) -> OwnSplits:
    """Cuts the rows. Those that must stay together stay: rows of one input, and, by prompt, rows
    whose prompts are the same or share a sentence.

    Args:
        validation: The wished share of the rows; prompts are not cut to reach it.
        test: The same for both test splits together.
        by_prompt: None: where there are enough prompts.

    Raises:
        DataError: too few rows or prompts.
    """
    shares = {TRAIN: 1 - validation - test, VALIDATION: validation, _TEST: test}
    if by_prompt is not False:
        parts = _parts(_together(rows, _prompt_and_input), shares, seed)
        enough = all(parts.values()) and _has_two_inputs(parts[_TEST])
        if enough and (by_prompt or len(parts[TRAIN]) >= _LEAST_TRAINING * len(rows)):
            return OwnSplits(_with_two_tests(parts, seed), by_prompt=True)
        if by_prompt:
            reason = (
                "too few system prompts that share no sentence: training, validation and test need "
                "one each; split by rows instead"
            )
            raise DataError.in_file("", reason)
    parts = _parts(_together(rows, _input), shares, seed)
    if not all(parts.values()) or not _has_two_inputs(parts[_TEST]):
        inputs = len({input_key(row.context, row.benign_input) for row in rows})
        reason = f"{inputs} different inputs are too few for four splits; give at least 8"
        raise DataError.in_file("", reason)
    return OwnSplits(_with_two_tests(parts, seed), by_prompt=False)


def _input(row: Triplet) -> list[str]:
    return [input_key(row.context, row.benign_input)]


def _prompt_and_input(row: Triplet) -> list[str]:
    return [*_input(row), *(f"S {key}" for key in prompt_keys(row.system_instruction))]


def _together(
    rows: Sequence[Triplet], keys_of: Callable[[Triplet], Iterable[str]]
) -> list[list[Triplet]]:
    """Groups of rows that share a key with another of their group, in the order of the rows."""
    leader = list(range(len(rows)))

    def find(member: int) -> int:
        while leader[member] != member:
            leader[member] = leader[leader[member]]
            member = leader[member]
        return member

    first: dict[str, int] = {}
    for number, row in enumerate(rows):
        for key in keys_of(row):
            one, other = find(first.setdefault(key, number)), find(number)
            leader[max(one, other)] = min(one, other)
    groups: dict[int, list[Triplet]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(find(number), []).append(row)
    return list(groups.values())


def _parts(
    groups: Sequence[list[Triplet]], shares: Mapping[str, float], seed: int
) -> dict[str, list[Triplet]]:
    """Gives each group, the largest first, to the part that lacks most rows."""
    total = sum(map(len, groups))
    shuffled = Random(f"{seed}/splits").sample(groups, len(groups))
    parts: dict[str, list[list[Triplet]]] = {name: [] for name in shares}
    lacking = {name: share * total for name, share in shares.items()}
    for group in sorted(shuffled, key=len, reverse=True):
        name = max(lacking, key=lambda part: lacking[part])
        parts[name].append(group)
        lacking[name] -= len(group)
    for name in (VALIDATION, _TEST):  # a part of few groups may have got none
        if not parts[name] and len(parts[TRAIN]) > 1:
            parts[name].append(parts[TRAIN].pop())
    return {name: [row for group in given for row in group] for name, given in parts.items()}


def _has_two_inputs(rows: Sequence[Triplet]) -> bool:
    return len({input_key(row.context, row.benign_input) for row in rows}) > 1


def _with_two_tests(parts: Mapping[str, list[Triplet]], seed: int) -> dict[str, Sequence[Triplet]]:
    """The test rows in halves: prompts may be in both, an input may not."""
    groups = _together(parts[_TEST], _input)
    halves = Random(f"{seed}/tests").sample(groups, len(groups))
    seen = [row for group in halves[::2] for row in group]
    novel = [row for group in halves[1::2] for row in group]
    return {
        TRAIN: parts[TRAIN],
        VALIDATION: parts[VALIDATION],
        TEST_SEEN: seen,
        TEST_NOVEL: novel,
    }
