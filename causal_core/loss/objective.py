"""The terms of the objective: what each needs of a triplet, its weight and its denominator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from causal_core.config import LossSection
from causal_core.loss.contrastive import contrastive_sums
from causal_core.loss.label_loss import LabelTerms, label_loss
from causal_core.model.causal_model import CausalModel, CausalOutput
from causal_core.tokens.triplet import TripletTokens
from causal_core.trees.needs import (
    BENIGN,
    BRANCHES,
    ROBUST,
    SHARED_ATTACKED,
    SHARED_CLEAN,
    TASK,
    Needs,
)
from causal_core.trees.prefix_tree import TreeBatch

TERMS = ("task", "causal", "spurious", "robust", "invariance")


@dataclass(frozen=True)
class Denominators:
    """Counts over the whole global batch; every worker derives them from the data alone."""

    benign_tokens: int
    injection_tokens: int
    shared_tokens: int  # answer tokens of triplets whose safe answer is the benign answer
    triplets: int

    @classmethod
    def of(cls, triplets: Sequence[TripletTokens]) -> Denominators:
        return cls(
            benign_tokens=sum(len(t.benign_answer) for t in triplets),
            injection_tokens=sum(len(t.injection_answer) for t in triplets),
            shared_tokens=sum(len(t.shared_answer()) for t in triplets),
            triplets=len(triplets),
        )

    def by_term(self) -> dict[str, int]:
        return {
            "task": self.benign_tokens,
            "causal": self.triplets,
            "spurious": self.triplets,
            "robust": self.injection_tokens,
            "invariance": self.shared_tokens,
        }


def is_contrastive(loss: LossSection) -> bool:
    """Whether a term on representations has weight."""
    return loss.lambda_causal > 0 or loss.lambda_spurious > 0


def needs_of(loss: LossSection) -> Needs:
    """What the weighted terms need of each triplet; nothing else is computed.

    U is always pooled, so that the head takes part in every backward.
    """
    groups = [TASK]
    if loss.lambda_robust > 0:
        groups.append(ROBUST)
    if loss.lambda_invariance > 0:
        groups += [SHARED_CLEAN, SHARED_ATTACKED]
    return Needs(BRANCHES if is_contrastive(loss) else (BENIGN,), tuple(groups))


def weighted_loss(sums: dict[str, Tensor], loss: LossSection, denominators: Denominators) -> Tensor:
    """sum over terms of lambda * sum / global denominator."""
    counts, weights = denominators.by_term(), loss.weights()
    parts = [value * (weights[name] / max(1, counts[name])) for name, value in sums.items()]
    return torch.stack(parts).sum()


def micro_batch_loss(
    model: CausalModel,
    output: CausalOutput,
    batch: TreeBatch,
    loss: LossSection,
    denominators: Denominators,
) -> tuple[Tensor, dict[str, Tensor]]:
    """This micro-batch's share of L, and the sum of each term without a gradient.

    Of the terms those with weight, and `task` in any case.
    """
    counts, weights = denominators.by_term(), loss.weights()
    factors = {name: weights[name] / max(1, counts[name]) for name in TERMS}
    groups = {TASK: "task"} | ({ROBUST: "robust"} if loss.lambda_robust > 0 else {})
    terms = LabelTerms(
        {group: factors[name] for group, name in groups.items()},
        (SHARED_CLEAN, SHARED_ATTACKED, factors["invariance"])
        if loss.lambda_invariance > 0
        else None,
    )
    value, found = label_loss(output.label_hidden, model.logits, batch.labels, terms)
    sums = {groups.get(name, "invariance"): total for name, total in found.items()}
    if is_contrastive(loss):
        contrast = contrastive_sums(loss.kind, output.z, loss.temperature, loss.margin)
        value = value + weighted_loss(contrast, loss, denominators)
        sums.update({name: total.detach() for name, total in contrast.items()})
    return value, sums
