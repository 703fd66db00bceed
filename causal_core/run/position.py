"""How far a run is: what its loop counts and a checkpoint remembers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from causal_core.errors import RunFailedError
from causal_core.run.selection import Best
from causal_core.tokens.triplet import TripletTokens


@dataclass
class Position:
    """Optimizer steps done, those of them that were skipped, and the best checkpoint so far."""

    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    best: Best = field(default_factory=Best)

    def advance(self, applied: bool, batch: Sequence[TripletTokens], max_skipped: int) -> None:
        """Counts a step; `applied` is false where its loss or gradient was not finite.

        Raises:
            RunFailedError: more than `max_skipped` steps in a row were skipped.
        """
        self.step += 1
        if applied:
            self.skipped_in_a_row = 0
            return
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row > max_skipped:
            raise RunFailedError(
                f"{self.skipped_in_a_row} optimizer steps in a row were not finite (step "
                f"{self.step}; train.max_skipped={max_skipped}). Lower train.learning_rate or "
                f"look at the last batch: {names_of(batch)}"
            )


def names_of(batch: Sequence[TripletTokens]) -> str:
    """The triplets of a batch, for a message."""
    return ", ".join(repr(triplet.id) for triplet in batch)
