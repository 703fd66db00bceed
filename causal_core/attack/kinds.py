"""The kinds of attack, in one table: how far each goes, and what a level counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from causal_core.attack.delimiters import delimiter_kit
from causal_core.attack.kit import words_kit
from causal_core.attack.search import BUDGETS, Search
from causal_core.attack.suffix import STEPS, SuffixSearch, UniversalSuffix
from causal_core.attack.target import Attacker, Target
from causal_core.attack.warm import SuffixAlong, Way
from causal_core.data.schema import Triplet


@dataclass(frozen=True)
class Given:
    """What some kinds take beside the model."""

    tuning: Sequence[Triplet] = ()
    way: Way = ()
    start: Sequence[int] = ()


@dataclass(frozen=True)
class Kind:
    """A kind of attack."""

    title: str
    unit: str  # what a level counts
    levels: tuple[int, ...]
    default: int  # the last level, unless another is asked for
    make: Callable[[Target, int, Given], Attacker]
    tuned: bool = False  # needs rows to tune on, apart from those that are attacked
    along: bool = False  # needs the checkpoints on the way to what is attacked


KINDS: Mapping[str, Kind] = {
    "words": Kind(
        "search over wrapper, payload, position and delimiter",
        "queries for each row",
        BUDGETS,
        64,
        lambda target, seed, _: Search(target, words_kit(), seed),
    ),
    "delimiters": Kind(
        "search over fake turns in look-alikes of the template's control tokens",
        "queries for each row",
        BUDGETS,
        64,
        lambda target, seed, _: Search(target, delimiter_kit(target), seed),
    ),
    "suffix": Kind(
        "suffix by gradients, one for each row",
        "gradient steps for each row",
        STEPS,
        100,
        lambda target, seed, _: SuffixSearch(target, seed),
    ),
    "universal": Kind(
        "suffix by gradients, one for all rows, tuned on validation rows",
        "gradient steps",
        STEPS,
        100,
        lambda target, seed, given: UniversalSuffix(target, seed, given.tuning),
        tuned=True,
    ),
    "warm": Kind(
        "suffix by gradients, one for each row, tuned along the checkpoints of the run",
        "gradient steps for each row, on all models together",
        STEPS,
        100,
        lambda target, seed, given: SuffixAlong(target, seed, given.way, given.start),
        along=True,
    ),
}
