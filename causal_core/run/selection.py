"""Which checkpoint is best: by metrics that the loss weights do not move (invariant I10)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from causal_core.checkpoints.state import BestSoFar
from causal_core.config import CheckpointSection

# Near a perfect benign answer a relative tolerance alone would leave one checkpoint to choose from.
_SLACK_NATS = 0.01
_CONSTRAINED = {"uplift", "attack_success"}  # a model that answers nothing would win these
_HIGHER_IS_BETTER = {"causal_stability", "causal_discrimination"}


@dataclass
class Best(BestSoFar):
    """The best checkpoint so far, and the judgement of the next one."""

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Best:
        return cls(**raw)

    def update(self, step: int, metrics: Mapping[str, float], config: CheckpointSection) -> bool:
        """Whether the checkpoint at `step` is the best so far.

        With metrics `uplift` and `attack_success`, only checkpoints whose benign NLL lies within
        `benign_tolerance` of the lowest seen compete, so a model that resists by answering nothing
        cannot win; of two with the same attack success the one with the lower NLL is better. When
        a new lowest NLL disqualifies the best so far, the new checkpoint takes its
        place.
        """
        if config.metric not in metrics:
            return False
        value, nll = metrics[config.metric], metrics["benign_nll"]
        if not (math.isfinite(value) and math.isfinite(nll)):
            self.stale += 1
            return False
        if config.metric == "uplift":
            value = max(0.0, value)  # a witness made less likely than without attack is no gain
        self.stale += 1
        if self.lowest_benign_nll is None or nll < self.lowest_benign_nll:
            self.lowest_benign_nll = nll
        slack = max(config.benign_tolerance * self.lowest_benign_nll, _SLACK_NATS)
        bound = self.lowest_benign_nll + slack
        if config.metric not in _CONSTRAINED:
            bound = float("inf")
        if nll > bound:
            return False
        sign = -1.0 if config.metric in _HIGHER_IS_BETTER else 1.0
        unseated = self.benign_nll is not None and self.benign_nll > bound
        gain = math.inf if self.value is None else sign * (self.value - value)
        # A share of few rows often ties; the one that answers better is then the better one.
        ties = gain == 0 and self.benign_nll is not None and nll < self.benign_nll
        better = gain > config.min_improvement or (config.metric == "attack_success" and ties)
        if better or unseated:
            self.step, self.value, self.benign_nll, self.stale = step, value, nll, 0
            return True
        return False

    def exhausted(self, config: CheckpointSection) -> bool:
        """Whether early stopping (`checkpoint.patience`) ends the run here."""
        return config.patience is not None and self.stale >= config.patience
