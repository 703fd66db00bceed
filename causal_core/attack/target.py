"""The model under attack, what it takes to ask it, and what is known of each row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

import torch

from causal_core.data.schema import Triplet, contains_witness
from causal_core.evaluation.generation import greedy_answers
from causal_core.evaluation.scoring import score_triplets
from causal_core.model import matmul
from causal_core.model.causal_model import CausalModel
from causal_core.tokens.prompts import PromptEncoder
from causal_core.tokens.triplet import InjectionTokens, TripletTokens

Progress = Callable[[], None]
_R = TypeVar("_R", bound="RowAttack")


@dataclass
class RowAttack:
    """What is known of one row."""

    id: str
    clean_answer: str = ""
    broken_at: int | None = None  # the level at which an attack first succeeded
    attack: str = ""  # the injected input that succeeded, else the best by score
    answer: str = ""
    target: str = ""  # what a success would answer
    queries: int = 0  # candidates that were scored

    def to_record(self) -> dict[str, Any]:
        """As JSON holds it."""
        return dict(vars(self))

    @classmethod
    def from_record(cls: type[_R], record: Mapping[str, Any]) -> _R:
        """What `to_record` made."""
        return cls(**record)

    def judge(self, level: int, text: str, wanted: str, answer: str) -> None:
        """Takes an answered attack in: a success breaks the row, once."""
        succeeded = contains_witness(answer, wanted)
        succeeded = succeeded and not contains_witness(self.clean_answer, wanted)
        if self.broken_at is None:
            self.attack, self.answer, self.target = text, answer, wanted
            self.broken_at = level if succeeded else None


class Attacker(Protocol):
    """A way to attack, with one model and one seed.

    What it does depends on the rows as they are, the level and the seed alone, so an attack that is
    continued from a record ends like one that was never interrupted. Rows that are broken are left
    as they are, so the share of broken rows never falls from level to level.
    """

    record: ClassVar[type[RowAttack]]

    def begin(self, rows: Sequence[Triplet]) -> Sequence[RowAttack]:
        """The rows before any query, with their clean answers."""

    def spend(
        self,
        rows: Sequence[Triplet],
        found: Sequence[Any],
        level: int,
        progress: Progress | None = None,
    ) -> None:
        """Brings every row up to `level` and answers its best; `progress` is called per row."""


@dataclass(frozen=True)
class Target:
    """The model under attack, and what it takes to ask it.

    With `bfloat16` a search looks for candidates by products in bfloat16 (`train.matmul`), which
    may rank them a little otherwise; what they are answered, and so what counts as a success, never
    depends on it.
    """

    model: CausalModel
    encoder: PromptEncoder
    device: torch.device
    batch_tokens: int
    max_new_tokens: int
    bfloat16: bool = False

    def searching(self) -> AbstractContextManager[None]:
        """The products of a search while the context lasts."""
        return matmul.using(matmul.in_use(), self.bfloat16)

    def prompt(self, row: Triplet, text: str) -> list[int]:
        """Tokens of the row's prompt with `text` as its input."""
        return self.encoder.prompt_ids(row.system_instruction, text, row.context)

    def answers(self, prompts: Sequence[Sequence[int]]) -> list[str]:
        """Greedy answers."""
        generated = greedy_answers(
            self.model,
            prompts,
            end_of_answer=self.encoder.end_of_answer,
            max_new_tokens=self.max_new_tokens,
            batch_tokens=self.batch_tokens,
            device=self.device,
        )
        return [self.encoder.decode(ids) for ids in generated]

    def begun(self, record: type[_R], rows: Sequence[Triplet]) -> list[_R]:
        """Rows of which nothing is known but the greedy answers to their benign inputs."""
        clean = self.answers([self.prompt(row, row.benign_input) for row in rows])
        return [record(row.id, answer) for row, answer in zip(rows, clean, strict=True)]

    def scores(self, row: Triplet, candidates: Sequence[tuple[str, str]]) -> list[float]:
        """Mean log-probability (nats) of a token of each candidate's target, in one tree.

        Args:
            candidates: An injected input and what a success would answer, each.
        """
        encoder = self.encoder
        texts = [row.benign_input, *(text for text, _ in candidates)]
        turns = [(row.system_instruction, encoder.user_turn(text, row.context)) for text in texts]
        prompts = encoder.prompts_ids(turns)
        wanted = encoder.answers_ids([wanted for _, wanted in candidates])
        first, last = min(prompts), max(prompts)
        shared = next(
            (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b),
            min(len(first), len(last)) - 1,
        )
        benign, *attacked = (ids[shared:] for ids in prompts)
        tokens = TripletTokens(
            id=row.id,
            system=prompts[0][:shared],
            benign=benign,
            counterfactual=[],
            benign_answer=encoder.answer_ids(row.benign_output),
            injections=tuple(
                InjectionTokens(prompt=ids, answer=[], witness=[], attack_answer=answer)
                for ids, answer in zip(attacked, wanted, strict=True)
            ),
        )
        alone = [tokens.attacked(number) for number in range(len(candidates))]
        with self.searching():
            scores = score_triplets(
                self.model, alone, self.device, self.batch_tokens, head_trained=False
            )
        return [
            float(total) / len(answer)
            for total, answer in zip(scores.attack_logp, wanted, strict=True)
        ]
