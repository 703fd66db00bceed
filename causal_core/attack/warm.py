"""A suffix that is tuned along a run: on the base, on its checkpoints, at last on what was trained.

What breaks one checkpoint is near to what breaks the next, so an attacker who has them all finds
suffixes where a search that begins at the trained model does not (Yang et al., 2025,
Checkpoint-GCG). The steps of a level are shared out evenly among the models, so a level costs as
many as one of `SuffixSearch`. Of a larger level only the new steps are taken: every model goes on
from the better of what it had and what the model before hands on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, ClassVar

from causal_core.attack.suffix import Problem, RowSuffix, SuffixTuner
from causal_core.attack.target import Progress, RowAttack
from causal_core.checkpoints.checkpoint import load_weights
from causal_core.data.schema import Triplet
from causal_core.model.lora import without_adapter

Way = Sequence[Path | None]  # checkpoints in order, the trained one last; None: the base


@dataclass
class RowAlong(RowSuffix):
    """What is known of one row: the suffix for the trained model, and each model's own."""

    models: list[RowSuffix] = field(default_factory=list)

    def to_record(self) -> dict[str, Any]:
        return {**vars(self), "models": [own.to_record() for own in self.models]}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> RowAlong:
        models = [RowSuffix.from_record(own) for own in record["models"]]
        return cls(**{**record, "models": models})


@dataclass(frozen=True)
class SuffixAlong(SuffixTuner):
    """A suffix of its own for every row, tuned along `way` (see `Attacker`).

    Without a way it is `SuffixSearch`. The target's model must hold the weights of the last of
    `way`, and does so again after every level.
    """

    way: Way = ()
    start: Sequence[int] = ()  # a suffix to try beside the one without meaning
    record: ClassVar[type[RowAttack]] = RowAlong

    def begin(self, rows: Sequence[Triplet]) -> list[RowAlong]:
        """The rows before any step, with their clean answers."""
        found = self.target.begun(RowAlong, rows)
        for state in found:
            state.models = [RowSuffix(state.id) for _ in range(self._models)]
        return found

    def spend(
        self,
        rows: Sequence[Triplet],
        found: Sequence[RowAlong],
        level: int,
        progress: Progress | None = None,
    ) -> None:
        """Brings every row up to `level` steps in all and answers its attack on the last model.

        `progress` is called per row and model.
        """
        problems = [self._problem(row, rows) for row in rows]
        handed: dict[str, list[int]] = {}  # what the model before found, by row
        for number in range(self._models):
            steps = (level + number) // self._models  # the last ones have what does not divide
            last = number == self._models - 1
            with self._weights_of(number):
                for problem, state in zip(problems, found, strict=True):
                    if state.broken_at is None and (steps or last):
                        own = state.models[number]
                        self._tune(own, problem, handed.get(state.id), steps, number)
                        handed[state.id] = own.suffix
                    if progress is not None:
                        progress()
        asked = []
        for problem, state in zip(problems, found, strict=True):
            if state.broken_at is None:
                state.suffix, state.score = state.models[-1].suffix, state.models[-1].score
                state.steps = sum(own.steps for own in state.models)
                state.queries = sum(own.queries for own in state.models)
                asked.append((state, problem, self._text(problem, state.suffix)))
        self._judge(asked, level)

    @property
    def _models(self) -> int:
        return max(1, len(self.way))

    def _tune(
        self, own: RowSuffix, problem: Problem, handed: list[int] | None, steps: int, number: int
    ) -> None:
        """Brings one model's suffix up to `steps`, from the best that is at hand."""
        name = f"{own.id}/{number}" if number else own.id
        offered = [handed] if handed is not None else []
        if not own.suffix:
            begin = handed or self._start(problem, Random(f"{self.seed}/{own.id}/start"))
            own.suffix = begin
            own.score = self._scores([problem], [begin])[0]
            offered = [list(self.start)] if self.start else []
        for suffix in offered:
            if suffix != own.suffix and self._place(problem, suffix) is not None:
                score = self._scores([problem], [suffix])[0]
                own.queries += 1
                if own.score is None or score > own.score:
                    own.suffix, own.score = suffix, score
        self._bring(own, [problem], steps, name)

    @contextmanager
    def _weights_of(self, number: int) -> Iterator[None]:
        """The target's model as it was at one place of the way."""
        if len(self.way) < 2:
            yield
            return
        checkpoint = self.way[number]
        if checkpoint is None:
            with without_adapter(self.target.model):
                yield
            return
        load_weights(checkpoint, self.target.model)
        yield
