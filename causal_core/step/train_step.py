"""One optimizer step over a global batch: micro-batches, global denominators, clip, update.

The step is an object apart from the loop: it knows nothing of epochs, checkpoints or logging.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from causal_core.config import LossSection, TrainSection
from causal_core.engines.base import Engine
from causal_core.errors import OneWorkerFailedError, RunFailedError
from causal_core.loss.contrastive import causal_metrics, cosines
from causal_core.loss.objective import (
    TERMS,
    Denominators,
    computed_terms,
    is_contrastive,
    micro_batch_loss,
    needs_of,
)
from causal_core.model.causal_model import CausalOutput
from causal_core.step.out_of_memory import is_out_of_memory, release_cached_memory
from causal_core.step.random_state import RandomState
from causal_core.tokens.triplet import TripletTokens
from causal_core.trees.needs import (
    Needs,
)
from causal_core.trees.packing import (
    MicroBatch,
    Packing,
    cut_micro_batches,
    packing_for,
    tree_nodes,
)
from causal_core.trees.prefix_tree import TreeBatch

log = logging.getLogger(__name__)


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
    """Runs optimizer steps on one worker of an engine.

    `budget` is the token budget of a micro-batch. When the device's memory runs out, it is halved
    on all workers and the step is done again from the same state: by invariant I2 the gradient of
    the global batch is the same. It stays halved.
    """

    engine: Engine
    loss: LossSection
    train: TrainSection
    device: torch.device
    budget: int = 0  # 0: the config's
    on_micro_batch: Callable[[TreeBatch], None] | None = None  # sees each before it runs
    packing: Packing | None = None  # None: the device's, with an unmeasured cost
    needs: Needs = field(init=False)

    def __post_init__(self) -> None:
        self.needs = needs_of(self.loss)
        if not self.budget:
            if self.train.micro_batch_tokens == "auto":
                raise ValueError("train.micro_batch_tokens=auto is resolved before a step is made")
            self.budget = self.train.micro_batch_tokens
        self._first_budget = self.budget

    def cut(self, triplets: Sequence[TripletTokens]) -> list[MicroBatch]:
        """This worker's share as micro-batches under the token budget.

        A budget that was halved for one step leaves room for the largest triplet of a later one.
        """
        packing = self.packing or packing_for(self.device)
        budget = self.budget
        if budget < self._first_budget:
            largest = max(tree_nodes(triplet, self.needs) for triplet in triplets)
            budget = max(budget, min(largest, self._first_budget))
        return cut_micro_batches(triplets, self.needs, budget, packing)

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
        """
        random = RandomState.of(self.device)
        while (totals := self._gradients(mine, denominators, stand_in, ready)) is None:
            random.restore()
            ready = None  # cut for the budget that was too large
        return self._finish(totals, denominators, learning_rate)

    def rehearse(self, triplets: Sequence[TripletTokens]) -> None:
        """The gradients of triplets, each a micro-batch of its own, computed and dropped.

        Collective. Draws from the random generators, which is the caller's to undo.

        Raises:
            RunFailedError: memory ran out.
        """
        ready = [micro_batch for triplet in triplets for micro_batch in self.cut([triplet])]
        while self._gradients(triplets, Denominators.of(triplets), triplets[0], ready) is None:
            ready = []
        self.engine.discard()

    def _gradients(
        self,
        mine: Sequence[TripletTokens],
        denominators: Denominators,
        stand_in: TripletTokens,
        ready: Sequence[MicroBatch] | None,
    ) -> Tensor | None:
        """Gradients of the global batch and this worker's totals; None: do it again."""
        self.engine.model.train()
        own = self._cut_unless(ready, mine)
        missing = self.engine.rounds(len(own)) - len(own)
        micro_batches = own + (self.cut([stand_in]) * missing if missing else [])
        totals = torch.zeros(len(TERMS) + 5, dtype=torch.float64)

        def loss_of(output: CausalOutput, batch: TreeBatch, counts: bool) -> Tensor:
            value, sums = micro_batch_loss(
                self.engine.model, output, batch, self.loss, denominators
            )
            # The head without a weighted term stays in the graph with a factor of 0: in
            # DistributedDataParallel every trainable parameter takes part in every backward.
            value = value + 0.0 * output.z.sum()
            if not counts:
                return value * 0.0
            self._add_totals(totals, sums, output, batch)
            return value

        def accumulate(first: int, end: int) -> bool:
            """Runs micro-batches [first, end); False: this worker's memory ran out."""
            try:
                for number in range(first, end):
                    batch = micro_batches[number].batch.to(self.device)
                    if self.on_micro_batch is not None:
                        self.on_micro_batch(batch)
                    weighed = partial(loss_of, counts=number < len(own))
                    self.engine.accumulate(batch, weighed, last=number == len(micro_batches) - 1)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                return False
            return True

        # Up to the last micro-batch no worker waits for another, so there they can agree.
        count = len(micro_batches)
        if not self.engine.local_until_last:
            if not accumulate(0, count):
                where = "under an engine that cannot go back"
                raise OneWorkerFailedError(self._out_of_memory(where))
            enough = True
        elif self.engine.world_size == 1:
            enough = accumulate(0, count)
        else:
            enough = accumulate(0, count - 1)
            if self._all_workers(enough):
                if not accumulate(count - 1, count):
                    where = "in the last micro-batch of a step"
                    raise OneWorkerFailedError(self._out_of_memory(where))
            else:
                self._halve_budget(mine, enough)
                return None
        if not enough:
            self._halve_budget(mine, enough)
            return None
        return totals

    def _cut_unless(
        self, ready: Sequence[MicroBatch] | None, mine: Sequence[TripletTokens]
    ) -> list[MicroBatch]:
        """`ready`, unless the budget has been halved since."""
        if ready is not None and all(m.batch.input_ids.numel() <= self.budget for m in ready):
            return list(ready)
        return self.cut(mine) if mine else []

    def _all_workers(self, enough: bool) -> bool:
        short = torch.tensor([float(not enough)], dtype=torch.float64)
        return not bool(self.engine.sum_over_workers(short)[0] > 0)

    def _halve_budget(self, mine: Sequence[TripletTokens], enough: bool) -> None:
        """Half of it, but room for this worker's largest triplet (`RunFailedError` if it is that
        already, on all workers)."""
        self.engine.discard()
        release_cached_memory(self.device)
        largest, name = max(((tree_nodes(t, self.needs), t.id) for t in mine), default=(1, ""))
        if not self._all_workers(enough or self.budget > largest):
            raise RunFailedError(
                self._out_of_memory(f"with a single triplet (here at most {name!r}, {largest} tree "
                                    "nodes) as micro-batch")
            )  # fmt: skip
        before, self.budget = self.budget, max(self.budget // 2, largest)
        log.warning(
            "memory ran out: micro-batches have at most %d tree nodes from now on (before: %d); "
            "the optimizer step is done again. To plan for it: train.micro_batch_tokens=%d",
            self.budget, before, self.budget,
        )  # fmt: skip

    def _out_of_memory(self, where: str) -> str:
        return (
            f"the device's memory ran out {where}, with micro-batches of at most {self.budget} "
            "tree nodes. Set train.gradient_checkpointing=true, model.quantization=nf4, a smaller "
            "lora.rank, data.max_length or train.micro_batch_tokens: `causal plan` shows what each "
            "saves. The same command then continues from the last checkpoint"
        )

    @torch.no_grad()
    def _add_totals(
        self, totals: Tensor, sums: dict[str, Tensor], output: CausalOutput, batch: TreeBatch
    ) -> None:
        for i, term in enumerate(TERMS):
            if term.name in sums:
                totals[i] += float(sums[term.name])
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
        counts, weights = denominators.by_term, self.loss.weights()
        computed = computed_terms(self.loss)
        terms = {
            term.name: float(totals[i]) / max(1, counts[term.name])
            for i, term in enumerate(TERMS)
            if term in computed
        }
        loss = sum(weights[name] * value for name, value in terms.items())
        applied = math.isfinite(grad_norm) and math.isfinite(loss)
        if applied:
            self.engine.step(learning_rate)
        else:
            self.engine.discard()
        cos_cf, cos_inj, nodes, path_tokens, padded = totals[len(TERMS) :].tolist()
        causal = causal_metrics(cos_cf / denominators.triplets, cos_inj / denominators.triplets)
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
