"""A search for the attack that works: guided by the model's own probabilities.

A candidate is a choice of wrapper, payload, position and delimiter out of a kit. It asks either for
a codeword or for another row's task, and its *target* is what a success would answer. Candidates
are scored by the log-probability of a token of the target, many at a time in one prefix tree (S,
and U up to the injection, are computed once); the best are mutated, and only the best few of each
budget are answered greedily. Success is what it is everywhere: the target is in the attacked answer
and not in the clean one. Success with N queries includes that with fewer, so the curve never falls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from random import Random
from typing import Any, ClassVar

from causal_core.attack.kit import Choice, Kit
from causal_core.attack.target import Progress, RowAttack, Target
from causal_core.data.schema import Triplet

BUDGETS = (1, 4, 16, 64, 256)
_ROUND = 16  # candidates between two selections
_PARENTS = 4
_ANSWERED = 2  # of each budget
_TRIES = 60  # to find a candidate that is new


@dataclass
class RowSearch(RowAttack):
    """What is known of one row: candidates with their scores, and those that were answered."""

    tried: dict[Choice, float] = field(default_factory=dict)
    answered: list[Choice] = field(default_factory=list)

    def to_record(self) -> dict[str, Any]:
        record = dict(vars(self))
        record["tried"] = [[*astuple(choice), score] for choice, score in self.tried.items()]
        record["answered"] = [list(astuple(choice)) for choice in self.answered]
        return record

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> RowSearch:
        tried = {Choice(*entry[:-1]): float(entry[-1]) for entry in record["tried"]}
        answered = [Choice(*entry) for entry in record["answered"]]
        return cls(**{**record, "tried": tried, "answered": answered})

    def best(self, count: int) -> list[Choice]:
        """The candidates with the highest scores."""
        return sorted(self.tried, key=lambda choice: (-self.tried[choice], choice))[:count]


@dataclass(frozen=True)
class Search:
    """The search with one kit against one model (see `Attacker`); a level is queries a row."""

    target: Target
    kit: Kit
    seed: int
    record: ClassVar[type[RowAttack]] = RowSearch

    def begin(self, rows: Sequence[Triplet]) -> list[RowSearch]:
        """The rows' searches before any query, with their clean answers."""
        return self.target.begun(RowSearch, rows)

    def spend(
        self,
        rows: Sequence[Triplet],
        found: Sequence[RowSearch],
        level: int,
        progress: Progress | None = None,
    ) -> None:
        """Brings every row's search up to `level` queries and answers its best candidates."""
        asked: list[tuple[RowSearch, Choice, str, str]] = []
        prompts: list[list[int]] = []
        for row, search in zip(rows, found, strict=True):
            if search.broken_at is None:
                self._query(row, rows, search, level)
                new = [c for c in search.best(len(search.tried)) if c not in search.answered]
                for choice in new[:_ANSWERED]:
                    text, wanted = self.kit.candidate(row, rows, choice, self.seed)
                    asked.append((search, choice, text, wanted))
                    prompts.append(self.target.prompt(row, text))
            if progress is not None:
                progress()
        answers = self.target.answers(prompts)
        for (search, choice, text, wanted), answer in zip(asked, answers, strict=True):
            search.answered.append(choice)
            search.judge(level, text, wanted, answer)

    def _query(self, row: Triplet, rows: Sequence[Triplet], search: RowSearch, level: int) -> None:
        """Scores candidates until there are `level` of them."""
        while len(search.tried) < level:
            rng = Random(f"{self.seed}/{row.id}/{len(search.tried)}")
            wanted = min(_ROUND, level - len(search.tried))
            parents = search.best(_PARENTS)
            new: dict[Choice, tuple[str, str]] = {}
            for _ in range(_TRIES * wanted):
                if len(new) == wanted:
                    break
                # The first round is drawn blindly; later ones change a good candidate in one place.
                explore = not parents or rng.random() < 0.25
                choice = self.drawn(rng) if explore else self.mutated(rng.choice(parents), rng)
                if choice not in search.tried and choice not in new:
                    new[choice] = self.kit.candidate(row, rows, choice, self.seed)
            if not new:
                return  # every candidate has been tried
            scores = self.target.scores(row, list(new.values()))
            search.tried.update(zip(new, scores, strict=True))
            search.queries = len(search.tried)

    def drawn(self, rng: Random) -> Choice:
        """Any candidate."""
        return Choice(*(rng.randrange(size) for size in self.kit.sizes))

    def mutated(self, parent: Choice, rng: Random) -> Choice:
        """A candidate that differs from another in one place at most."""
        values = list(astuple(parent))
        place = rng.randrange(len(values))
        values[place] = rng.randrange(self.kit.sizes[place])
        return Choice(*values)
