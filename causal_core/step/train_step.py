"""One optimizer step over a global batch: micro-batches, global denominators, clip, update.

The step is an object apart from the loop: it knows nothing of epochs, checkpoints or logging.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from functools import partial

import torch
from torch import Tensor

from causal_core.config import LossSection, TrainSection
from causal_core.engines.base import Engine
from causal_core.loss.contrastive import causal_metrics
from causal_core.loss.label_loss import Reference
from causal_core.loss.objective import (
    Denominators,
    computed_terms,
    is_contrastive,
    micro_batch_loss,
    needs_of,
    needs_reference,
    reference_groups,
    reference_hidden,
)
from causal_core.model.causal_model import CausalOutput
from causal_core.model.layout import packing_for
from causal_core.step.gradients import check_gradients
from causal_core.step.out_of_memory import NodeBudget
from causal_core.step.reference import KnownRows
from causal_core.step.totals import RunningTotals, StepTotals
from causal_core.tokens.triplet import TripletTokens
from causal_core.trees.needs import Needs
from causal_core.trees.packing import MicroBatch, Packing, cut_micro_batches
from causal_core.trees.prefix_tree import TreeBatch


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
    """Runs optimizer steps on one worker of an engine: cut, accumulate, agree, finish."""

    engine: Engine
    loss: LossSection
    train: TrainSection
    device: torch.device
    nodes: InitVar[int] = 0  # tree nodes of a micro-batch at most; 0: the config's
    on_micro_batch: Callable[[TreeBatch], None] | None = None  # sees each before it runs
    packing: Packing | None = None  # None: the device's, with an unmeasured cost
    rows_return: bool = False  # the same rows come again: what stays the same of them is kept
    needs: Needs = field(init=False)
    _all_trained: bool = field(default=False, init=False)
    budget: NodeBudget = field(init=False)
    _known: KnownRows | None = field(default=None, init=False)

    def __post_init__(self, nodes: int) -> None:
        self.needs = needs_of(self.loss)
        if not nodes:
            if self.train.micro_batch_tokens == "auto":
                raise ValueError("train.micro_batch_tokens=auto is resolved before a step is made")
            nodes = self.train.micro_batch_tokens
        self.budget = NodeBudget(nodes, self.needs, self.engine, self.device)
        groups = reference_groups(self.loss)
        # Where a forward takes all workers, one that knows a row already would leave the others.
        if self.rows_return and groups and not self.engine.collective_forward:
            self._known = KnownRows(self.engine.model, groups, self._packing(), self.device)

    def cut(self, triplets: Sequence[TripletTokens]) -> list[MicroBatch]:
        """This worker's share as micro-batches under the budget, ready for their copy."""
        packing = self._packing()
        room = self.budget.room_for(triplets)
        return [
            MicroBatch(micro.batch.staged(self.device), micro.owners)
            for micro in cut_micro_batches(triplets, self.needs, room, packing)
        ]

    def _packing(self) -> Packing:
        return self.packing or packing_for(self.engine.model, self.device)

    def run(
        self,
        mine: Sequence[TripletTokens],
        denominators: Denominators,
        learning_rate: float,
        stand_in: TripletTokens,
        ready: Sequence[MicroBatch] | None = None,
    ) -> StepReport:
        """One optimizer step.

        Args:
            mine: This worker's share of the global batch; may be empty.
            denominators: Counts of the whole global batch.
            learning_rate: Of this step.
            stand_in: Any triplet; a worker with too small a share runs it with weight 0, so that
                all workers take part in the same collective operations.
            ready: `mine` cut already, by `cut`.

        Raises:
            RunFailedError: memory ran out and no smaller micro-batch is possible.
            ModelError: something that is to be trained gets no gradient, in the first step.
        """
        totals = self._gradients(mine, denominators, stand_in, ready)
        if not self._all_trained:
            self._all_trained = check_gradients(self.engine, self.loss)
        return self._finish(totals, denominators, learning_rate)

    def rehearse(self, triplets: Sequence[TripletTokens]) -> None:
        """The gradients of triplets, each a micro-batch of its own, computed and dropped.

        Collective. Draws from the random generators, which is the caller's to undo.

        Raises:
            RunFailedError: memory ran out.
        """
        ready = [micro_batch for triplet in triplets for micro_batch in self.cut([triplet])]
        self._gradients(triplets, Denominators.of(triplets), triplets[0], ready)
        self.engine.discard()

    def _gradients(
        self,
        mine: Sequence[TripletTokens],
        denominators: Denominators,
        stand_in: TripletTokens,
        ready: Sequence[MicroBatch] | None,
    ) -> RunningTotals:
        """Leaves the gradients of the global batch in the engine; this worker's totals."""
        self.engine.model.train()
        for attempt in self.budget.attempts(mine):
            own = self._cut_unless(None if attempt.again else ready, mine)
            missing = self.engine.rounds(len(own)) - len(own)
            micro_batches = own + (self.cut([stand_in]) * missing if missing else [])
            rows = [{owner: mine[owner] for owner in micro.owners} for micro in own]
            rows += [{0: stand_in}] * missing
            totals = RunningTotals(self.device)
            accumulate = partial(
                self._accumulate, micro_batches, rows, len(own), denominators, totals
            )
            attempt.run(accumulate, len(micro_batches))
        return totals

    def _cut_unless(
        self, ready: Sequence[MicroBatch] | None, mine: Sequence[TripletTokens]
    ) -> list[MicroBatch]:
        """`ready`, unless the budget has been halved since."""
        if ready is not None and all(m.batch.charged <= self.budget.nodes for m in ready):
            return list(ready)
        return self.cut(mine) if mine else []

    def _accumulate(
        self,
        micro_batches: Sequence[MicroBatch],
        rows: Sequence[Mapping[int, TripletTokens]],
        own: int,
        denominators: Denominators,
        totals: RunningTotals,
        first: int,
        end: int,
    ) -> None:
        """Runs micro-batches [first, end), of `rows`; those from `own` on are stand-ins."""
        for number in range(first, end):
            batch = micro_batches[number].batch.to(self.device)
            if self.on_micro_batch is not None:
                self.on_micro_batch(batch)
            loss_of = partial(
                self._loss_of,
                reference=self._reference(batch, rows[number]),
                denominators=denominators,
                totals=totals if number < own else None,
            )
            self.engine.accumulate(batch, loss_of, last=number == len(micro_batches) - 1)

    def _reference(self, batch: TreeBatch, rows: Mapping[int, TripletTokens]) -> Reference | None:
        """What the model without its adapter says, where a term asks: of the same tree, or what is
        known of each row; a resumed run, whatever it has seen before, has the same of either."""
        if not needs_reference(self.loss):
            return None
        if self._known is not None:
            return self._known.of(rows)
        return reference_hidden(self.engine.model, batch)

    def _loss_of(
        self,
        output: CausalOutput,
        batch: TreeBatch,
        reference: Reference | None,
        denominators: Denominators,
        totals: RunningTotals | None,
    ) -> Tensor:
        """A micro-batch's share of the loss, added to the totals; 0 for a stand-in, without."""
        value, sums = micro_batch_loss(
            self.engine.model, output, batch, self.loss, denominators, reference
        )
        # The head without a weighted term stays in the graph with a factor of 0: in
        # DistributedDataParallel every trainable parameter takes part in every backward.
        value = value + 0.0 * output.z.sum()
        if totals is None:
            return value * 0.0
        totals.add(sums, output.z if is_contrastive(self.loss) else None, batch)
        return value

    def _finish(
        self, own: RunningTotals, denominators: Denominators, learning_rate: float
    ) -> StepReport:
        """Clips and moves, or discards what is not finite.

        The norm is the same on all workers, and so are the summed totals: every worker takes the
        same decision without asking.
        """
        grad_norm = self.engine.clip(self.train.clip_norm)
        totals = StepTotals.from_tensor(self.engine.sum_over_workers(own.values))
        counts, weights = denominators.by_term, self.loss.weights()
        terms = {
            term.name: totals.terms[term.name] / max(1, counts[term.name])
            for term in computed_terms(self.loss)
        }
        loss = sum(weights[name] * value for name, value in terms.items())
        applied = math.isfinite(grad_norm) and math.isfinite(loss)
        if applied:
            self.engine.step(learning_rate)
        else:
            self.engine.discard()
        causal = causal_metrics(
            totals.cos_counterfactual / denominators.triplets,
            totals.cos_injection / max(1, denominators.by_term["spurious"]),
        )
        return StepReport(
            loss=loss,
            terms=terms,
            causal=causal if is_contrastive(self.loss) else {},
            grad_norm=grad_norm,
            applied=applied,
            nodes=int(totals.nodes),
            path_tokens=int(totals.path_tokens),
            padded_nodes=int(totals.padded_nodes),
        )
