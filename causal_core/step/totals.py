"""What a step adds up: over the micro-batches of a worker, then over the workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from causal_core.loss import objective
from causal_core.loss.contrastive import cosines
from causal_core.trees.prefix_tree import TreeBatch


@dataclass
class StepTotals:
    """Sums over micro-batches, in float64."""

    terms: dict[str, float] = field(
        default_factory=lambda: {term.name: 0.0 for term in objective.TERMS}
    )
    cos_counterfactual: float = 0.0
    cos_injection: float = 0.0
    nodes: float = 0.0
    path_tokens: float = 0.0
    padded_nodes: float = 0.0

    @classmethod
    def from_tensor(cls, values: Tensor) -> StepTotals:
        """What `RunningTotals.values` has become, summed over workers or not. Waits for it."""
        numbers = values.tolist()
        terms = {term.name: numbers[i] for i, term in enumerate(objective.TERMS)}
        return cls(terms, *numbers[len(objective.TERMS) :])


class RunningTotals:
    """`StepTotals` in the making, where the computation is.

    Reading a number from a GPU waits for all work before it, so that nothing is queued behind: a
    step reads once, at its end.
    """

    def __init__(self, device: torch.device) -> None:
        names = [*StepTotals().terms, *(f.name for f in fields(StepTotals) if f.name != "terms")]
        self.values = torch.zeros(len(names), dtype=torch.float64, device=device)
        self._places = dict(zip(names, self.values.unbind(), strict=True))

    @torch.no_grad()
    def add(self, sums: Mapping[str, Tensor], z_ZH: Tensor | None, batch: TreeBatch) -> None:
        """Adds a micro-batch.

        Args:
            sums: Of the computed terms, by name.
            z_ZH: Representations of the branches, where there is a metric to make of them.
        """
        found: dict[str, Tensor | int] = dict(sums)
        if z_ZH is not None:
            cosine = cosines(z_ZH, batch.branch_index, batch.injection_owner)
            found["cos_counterfactual"] = cosine.counterfactual_T.sum()
            found["cos_injection"] = cosine.injection_J.sum()
        found["nodes"] = batch.nodes
        found["path_tokens"] = batch.path_tokens
        found["padded_nodes"] = batch.input_ids.numel()
        for name, value in found.items():
            self._places[name] += value
