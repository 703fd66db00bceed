"""What is computed: three objectives that both sides have, and how many tokens each has.

A peer averages over all answers alike, ours over those of each term: the weights below make the
two the same number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.peers.data_sets import answered
from causal_core.config import LossSection
from causal_core.loss.objective import Denominators, needs_of
from causal_core.tokens.triplet import TripletTokens
from causal_core.trees.packing import FLAT, cut_micro_batches

SFT, PREFERENCE, WHOLE = ALL = ("answers", "preference", "whole")


@dataclass(frozen=True)
class Objective:
    """One objective on some rows."""

    name: str
    rows: list[TripletTokens]
    loss: LossSection

    @property
    def path_tokens(self) -> int:
        """Tokens of the separate sequences that it is defined on."""
        return sum(len(prompt) + len(answer) for prompt, answer in self.sequences())

    @property
    def labels(self) -> int:
        """Tokens of the answers that it looks at."""
        return sum(len(answer) for _, answer in self.sequences())

    def terms(self) -> str:
        """What it is made of, for people."""
        return " + ".join(term for term, weight in self.loss.weights().items() if weight)

    def nodes(self) -> int:
        """Distinct prefix tokens that ours computes."""
        batches = cut_micro_batches(self.rows, needs_of(self.loss), 10**9, FLAT)
        return sum(micro_batch.batch.nodes for micro_batch in batches)

    def sequences(self) -> list[tuple[list[int], list[int]]]:
        """Prompts with each answer that it looks at."""
        weights, found = self.loss.weights(), []
        for row in self.rows:
            clean, *attacked = answered(row)
            found += [clean] if weights["task"] else []
            found += attacked
            if weights["preference"]:
                found += [(row.system + i.prompt, i.attack_answer) for i in row.injections]
        return found


def objective(name: str, rows: Sequence[TripletTokens]) -> Objective | None:
    """An objective on the rows that have what it needs; None where there is nothing new in it.

    The whole one is today's default and preference, which rows need an attack's answer for; where
    no row has one it is the default alone.
    """
    if name == SFT:
        return Objective(name, list(rows), _answers_alike(rows))
    attacked = [row for row in rows if row.injections]
    wanted = [row for row in attacked if all(i.attack_answer for i in row.injections)]
    if name == PREFERENCE:
        loss = LossSection(**_only(preference=1.0))
        return Objective(name, wanted, loss) if wanted else None
    if wanted:
        return Objective(name, wanted, LossSection(lambda_preference=1.0))
    return Objective(name, attacked, LossSection()) if attacked else None


def _answers_alike(rows: Sequence[TripletTokens]) -> LossSection:
    """Task and robust weighted by their tokens: the mean over the tokens of all answers."""
    counts = Denominators.of(rows).by_term
    total = counts["task"] + counts["robust"]
    return LossSection(**_only(task=counts["task"] / total, robust=counts["robust"] / total))


def _only(**weights: float) -> dict[str, float]:
    return {f"lambda_{term}": weights.get(term, 0.0) for term in LossSection.terms()}
