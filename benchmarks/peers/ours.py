"""Our step on an objective: what a run does with its micro-batches, cut included."""

from __future__ import annotations

from benchmarks.peers.contender import FORWARD_TOKENS, Loop
from benchmarks.peers.objectives import Objective
from benchmarks.step import tree_step
from causal_core.loss.objective import needs_of
from causal_core.model.causal_model import CausalModel
from causal_core.trees.packing import tree_nodes


def ours(model: CausalModel, objective: Objective) -> Loop:
    """In forwards of as many nodes as a peer's have tokens, or of the largest row's own tree."""
    needs = needs_of(objective.loss)
    largest = max(tree_nodes(row, needs) for row in objective.rows)
    step = tree_step(max(FORWARD_TOKENS, largest))
    return Loop("causal-ray", model, lambda: step(model, objective.rows, objective.loss))
