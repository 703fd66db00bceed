"""One optimizer step over a global batch: micro-batches, global denominators, clip, update.

The step is an object apart from the loop: it knows nothing of epochs, checkpoints or logging.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from causal_core.config import LossConfig, TrainConfig
from causal_core.engine import Engine
from causal_core.losses import contrastive_sums, cosines, cross_entropy_sum, kl_sum
from causal_core.model import CausalOutput
from causal_core.prefix_tree import TreeBatch
from causal_core.triplet_trees import (
    BENIGN,
    BRANCHES,
    ROBUST,
    SHARED_ATTACKED,
    SHARED_CLEAN,
    TASK,
    MicroBatch,
    Needs,
    TripletTokens,
    cut_micro_batches,
)

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


def is_contrastive(loss: LossConfig) -> bool:
    """Whether a term on representations has weight."""
    return loss.lambda_causal > 0 or loss.lambda_spurious > 0


def needs_of(loss: LossConfig) -> Needs:
    """What the weighted terms need of each triplet; nothing else is computed.

    U is always pooled, so that the head takes part in every backward.
    """
    groups = [TASK]
    if loss.lambda_robust > 0:
        groups.append(ROBUST)
    if loss.lambda_invariance > 0:
        groups += [SHARED_CLEAN, SHARED_ATTACKED]
    return Needs(BRANCHES if is_contrastive(loss) else (BENIGN,), tuple(groups))


def loss_sums(output: CausalOutput, batch: TreeBatch, loss: LossConfig) -> dict[str, Tensor]:
    """The sum of each term over a micro-batch: the terms with weight, and `task` in any case."""
    task = batch.labels[TASK]
    sums = {"task": cross_entropy_sum(output.label_logits[task.position], task.target)}
    if is_contrastive(loss):
        sums.update(contrastive_sums(loss.kind, output.z, loss.temperature, loss.margin))
    if loss.lambda_robust > 0:
        robust = batch.labels[ROBUST]
        sums["robust"] = cross_entropy_sum(output.label_logits[robust.position], robust.target)
    if loss.lambda_invariance > 0:
        teacher, student = batch.labels[SHARED_CLEAN], batch.labels[SHARED_ATTACKED]
        sums["invariance"] = kl_sum(
            output.label_logits[teacher.position], output.label_logits[student.position]
        )
    return sums


def weighted_loss(sums: dict[str, Tensor], loss: LossConfig, denominators: Denominators) -> Tensor:
    """sum over terms of lambda * sum / global denominator: this micro-batch's share of L."""
    counts, weights = denominators.by_term(), loss.weights()
    parts = [value * (weights[name] / max(1, counts[name])) for name, value in sums.items()]
    return torch.stack(parts).sum()


@dataclass
class StepReport:
    """What an optimizer step measured, over the global batch."""

    loss: float
    terms: dict[str, float]  # each term divided by its denominator, unweighted
    causal: dict[str, float]  # the reports' causal metrics, where the contrastive terms run
    grad_norm: float
    applied: bool  # False: non-finite, the optimizer did not move
    nodes: int  # tree nodes computed by all workers
    path_tokens: int  # tokens that unpadded separate forwards would have computed
    padded_nodes: int

    def metrics(self) -> dict[str, float]:
        """Flat values by metric name, free of wall-clock time."""
        return {
            "loss": self.loss,
            **{f"loss_{name}": value for name, value in self.terms.items()},
            **self.causal,
            "grad_norm": self.grad_norm,
        }


@dataclass
class TrainStep:
    """Runs optimizer steps on one worker of an engine."""

    engine: Engine
    loss: LossConfig
    train: TrainConfig
    device: torch.device
    needs: Needs = field(init=False)

    def __post_init__(self) -> None:
        self.needs = needs_of(self.loss)

    def cut(self, triplets: Sequence[TripletTokens]) -> list[MicroBatch]:
        """This worker's share as micro-batches under the token budget."""
        return cut_micro_batches(triplets, self.needs, self.train.micro_batch_tokens)

    def run(
        self,
        mine: Sequence[TripletTokens],
        denominators: Denominators,
        learning_rate: float,
        stand_in: TripletTokens,
    ) -> StepReport:
        """One optimizer step.

        Args:
            mine: This worker's share of the global batch; may be empty.
            denominators: Counts of the whole global batch.
            learning_rate: Of this step.
            stand_in: Any triplet; a worker with too small a share runs it with weight 0, so that
                all workers take part in the same collective operations.
        """
        self.engine.model.train()
        own = self.cut(mine) if mine else []
        missing = self.engine.rounds(len(own)) - len(own)
        micro_batches = own + (self.cut([stand_in]) * missing if missing else [])
        totals = torch.zeros(len(TERMS) + 5, dtype=torch.float64)

        def loss_of(output: CausalOutput, batch: TreeBatch, counts: bool) -> Tensor:
            sums = loss_sums(output, batch, self.loss)
            # The head without a weighted term stays in the graph with a factor of 0: in
            # DistributedDataParallel every trainable parameter takes part in every backward.
            value = weighted_loss(sums, self.loss, denominators) + 0.0 * output.z.sum()
            if not counts:
                return value * 0.0
            self._add_totals(totals, sums, output, batch)
            return value

        for number, micro in enumerate(micro_batches, start=1):
            weighed = partial(loss_of, counts=number <= len(own))
            last = number == len(micro_batches)
            self.engine.accumulate(micro.batch.to(self.device), weighed, last)
        return self._finish(totals, denominators, learning_rate)

    @torch.no_grad()
    def _add_totals(
        self, totals: Tensor, sums: dict[str, Tensor], output: CausalOutput, batch: TreeBatch
    ) -> None:
        for i, name in enumerate(TERMS):
            if name in sums:
                totals[i] += float(sums[name])
        if is_contrastive(self.loss):
            cos_cf, cos_inj = cosines(output.z)
            totals[len(TERMS)] += float(cos_cf.sum())
            totals[len(TERMS) + 1] += float(cos_inj.sum())
        totals[len(TERMS) + 2] += batch.nodes
        totals[len(TERMS) + 3] += batch.path_tokens
        totals[len(TERMS) + 4] += batch.input_ids.numel()

    def _finish(
        self, totals: Tensor, denominators: Denominators, learning_rate: float
    ) -> StepReport:
        # The norm is the same on all workers, and so are the summed totals: every worker takes the
        # same decision without asking.
        grad_norm = self.engine.clip(self.train.clip_norm)
        totals = self.engine.sum_over_workers(totals)
        counts, weights = denominators.by_term(), self.loss.weights()
        terms = {
            name: float(totals[i]) / max(1, counts[name])
            for i, name in enumerate(TERMS)
            if name == "task" or weights[name] > 0
        }
        loss = sum(weights[name] * value for name, value in terms.items())
        applied = math.isfinite(grad_norm) and math.isfinite(loss)
        if applied:
            self.engine.step(learning_rate)
        else:
            self.engine.discard()
        cos_cf, cos_inj, nodes, path_tokens, padded = totals[len(TERMS) :].tolist()
        stability = cos_cf / denominators.triplets
        similarity = cos_inj / denominators.triplets
        causal = {
            "causal_stability": stability,
            "spurious_separation": 1.0 - similarity,
            "causal_discrimination": stability - similarity,
        }
        return StepReport(
            loss=loss,
            terms=terms,
            causal=causal if is_contrastive(self.loss) else {},
            grad_norm=grad_norm,
            applied=applied,
            nodes=int(nodes),
            path_tokens=int(path_tokens),
            padded_nodes=int(padded),
        )
