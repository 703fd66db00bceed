"""Validation inside a run: every worker scores its rows, all of them get all results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from causal_core.config import Config
from causal_core.evaluation.gate import chosen_attacks, succeeded
from causal_core.evaluation.scoring import Scores, score_triplets
from causal_core.loss.objective import is_contrastive
from causal_core.run.context import RunContext
from causal_core.run.session import Session
from causal_core.tokens.dataset import TripletDataset
from causal_core.trees.needs import BRANCHES


@dataclass(frozen=True)
class Validation:
    """The validation of one worker's run, after any optimizer step."""

    config: Config
    session: Session
    context: RunContext

    def metrics(self) -> dict[str, float]:
        """The metrics of the whole validation data, the same on all workers; none without data."""
        dataset = self.session.data.validation
        if dataset is None:
            return {}
        scores = self._scores(dataset)
        metrics = scores.summary(is_contrastive(self.config.loss))
        if self.session.selection.metric == "attack_success":
            metrics["attack_success"] = self._attack_success(dataset, scores)
        return metrics

    def _scores(self, dataset: TripletDataset) -> Scores:
        """The scores of all injections: a sum over workers puts every worker's rows together."""
        rows, engine = self._rows(len(dataset)), self.session.engine
        attacks = _attacks(dataset)
        places = [place for place, (row, _) in enumerate(attacks) if row in rows]
        mine = [dataset.tokens(attacks[p][0]).attacked(attacks[p][1]) for p in places]
        first = [attacks[p][1] in (0, None) for p in places]
        head_trained = is_contrastive(self.config.loss)
        budget = self.session.token_budget
        own = score_triplets(engine.model, mine, self.context.device, budget, head_trained, first)
        if rows == range(len(dataset)):
            return own
        width = engine.model.projection.input.in_features
        branches = len(BRANCHES) if head_trained else 1
        merged: dict[str, Any] = {}
        for name, values in vars(own).items():
            vectors = name in ("z", "pooled")
            shape = (len(attacks), branches, width) if vectors else (len(attacks),)
            full = torch.zeros(shape, dtype=torch.float64)
            if mine:
                full[places] = torch.as_tensor(values, dtype=torch.float64)
            merged[name] = engine.sum_over_workers(full).numpy().astype(values.dtype)
        return Scores(**merged)

    def _attack_success(self, dataset: TripletDataset, scores: Scores) -> float:
        """Share of the attacks that succeed, by greedy answers to some of them."""
        chosen = chosen_attacks(dataset, self.config.validation.answered)
        place = {attack: number for number, attack in enumerate(_attacks(dataset))}
        rows = self._rows(len(dataset))
        mine = [attack for attack in chosen if attack[0] in rows]
        flags = succeeded(
            self.session.engine.model,
            self.session.data.encoder,
            dataset,
            mine,
            scores,
            [place[attack] for attack in mine],
            self.config.evaluation,
            self.session.token_budget,
            self.context.device,
        )
        counts = torch.tensor([float(sum(flags)), float(len(mine))], dtype=torch.float64)
        successes, attacks = self.session.engine.sum_over_workers(counts).tolist()
        return successes / max(1.0, attacks)

    def _rows(self, count: int) -> range:
        """This worker's rows: all of them, where a forward takes all workers together."""
        if self.session.engine.collective_forward:
            return range(count)
        return range(self.context.rank, count, self.context.world_size)


def _attacks(dataset: TripletDataset) -> list[tuple[int, int | None]]:
    """Every row with the number of each of its injections, or with None: the order of scores."""
    return [
        (row, number)
        for row in range(len(dataset))
        for number in dataset.injections_of(row) or (None,)
    ]
