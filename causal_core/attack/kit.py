"""What candidates are put together from: wordings of this room, apart from what training sees."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from random import Random

from causal_core.data.schema import Triplet, contains_witness
from causal_core.generator.compose import DELIMITERS, POSITIONS, place
from causal_core.generator.families import filled
from causal_core.generator.vocabulary import TEST_NOVEL, pools
from causal_core.yaml_file import read_yaml

_WORDINGS = Path(__file__).parent / "wordings.yaml"
_DRAWS = 8  # values of what a candidate's other numbers leave open: a codeword, another row
_TRIES = 60  # to find another row whose task can be asked for
_LONGEST_INPUT, _LONGEST_ANSWER, _SHORTEST_ANSWER = 400, 80, 2


@dataclass(frozen=True, order=True)
class Choice:
    """Which candidate: numbers of the wordings, position, delimiter, and a number for the rest."""

    wrapper: int
    payload: int
    position: int
    delimiter: int
    draw: int


@dataclass(frozen=True)
class Kit:
    """The parts that a candidate chooses from; `{payload}` in a wrapper is what is asked for."""

    wrappers: tuple[str, ...]
    say: tuple[str, ...]
    task: tuple[str, ...]
    positions: tuple[str, ...]
    delimiters: tuple[str, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many values each number of a `Choice` has."""
        payloads = len(self.say) + len(self.task)
        return len(self.wrappers), payloads, len(self.positions), len(self.delimiters), _DRAWS

    def digest(self) -> str:
        """sha256 of all parts."""
        return hashlib.sha256(repr(self).encode()).hexdigest()

    def candidate(
        self, row: Triplet, rows: Sequence[Triplet], choice: Choice, seed: int
    ) -> tuple[str, str]:
        """The injected input of a choice, and what a success would answer."""
        rng = Random(f"{seed}/{row.id}/{choice.draw}")
        other = _other(row, rows, rng)
        if choice.payload < len(self.say) or other is None:
            wanted = _codeword(row, rng)
            asked = filled(self.say[choice.payload % len(self.say)], {"w": wanted}, rng)
        else:
            wanted = other.benign_output
            values = {"instruction": other.system_instruction, "input": other.benign_input}
            asked = filled(self.task[choice.payload - len(self.say)], values, rng)
        wrapper = self.wrappers[choice.wrapper].replace("{payload}", asked)
        text = self.delimiters[choice.delimiter].replace("{attack}", wrapper)
        return place(row.benign_input, text, self.positions[choice.position], rng)[0], wanted


@cache
def words_kit() -> Kit:
    """The wrappers, payloads, positions and delimiters of the search in words."""
    found: Mapping[str, Sequence[str]] = read_yaml(_WORDINGS)
    return Kit(
        wrappers=tuple(found["wrappers"]),
        say=tuple(found["say"]),
        task=tuple(found["task"]),
        positions=POSITIONS,
        delimiters=tuple(DELIMITERS.values()),
    )


def bare_kit(wrappers: Sequence[str] = ("{payload}",)) -> Kit:
    """The same payloads at the end of the input, in these wrappers and nothing around them."""
    plain = DELIMITERS["plain"]
    return replace(words_kit(), wrappers=tuple(wrappers), positions=("end",), delimiters=(plain,))


def _codeword(row: Triplet, rng: Random) -> str:
    words = pools(TEST_NOVEL)
    texts = (row.system_instruction, row.context or "", row.benign_input, row.benign_output)
    while any(contains_witness(text, word := words.codeword(rng)) for text in texts):
        pass
    return word


def _other(row: Triplet, rows: Sequence[Triplet], rng: Random) -> Triplet | None:
    """A row whose task can be asked for: short, and with an answer that is not in this row."""
    texts = (row.system_instruction, row.context or "", row.benign_input, row.benign_output)
    for _ in range(_TRIES):
        other = rng.choice(rows)
        same = other.system_instruction == row.system_instruction
        if row.task is not None:
            same = same or other.task == row.task
        if (
            not same
            and len(other.benign_input) <= _LONGEST_INPUT
            and _SHORTEST_ANSWER <= len(other.benign_output) <= _LONGEST_ANSWER
            and not any(contains_witness(text, other.benign_output) for text in texts)
        ):
            return other
    return None
