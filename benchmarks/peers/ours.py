"""Our step on an objective: what a run does with its micro-batches, cut included."""

from __future__ import annotations

from benchmarks.peers.contender import Loop
from benchmarks.peers.objectives import Objective
from benchmarks.step import tree_step
from causal_core.loss.objective import needs_of
from causal_core.model.causal_model import CausalModel
from causal_core.trees.packing import tree_nodes

MICRO_BATCH_TOKENS = 2048


def ours(model: CausalModel, objective: Objective) -> Loop:
    """At the default budget of a micro-batch, or the largest row's own tree."""
    needs = needs_of(objective.loss)
    largest = max(tree_nodes(row, needs) for row in objective.rows)
    step = tree_step(max(MICRO_BATCH_TOKENS, largest))
    return Loop("causal-ray", model, lambda: step(model, objective.rows, objective.loss))
