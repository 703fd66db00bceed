"""What a step adds up: over the micro-batches of a worker, then over the workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

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

    @torch.no_grad()
    def add(self, sums: Mapping[str, Tensor], z_ZH: Tensor | None, batch: TreeBatch) -> None:
        """Adds a micro-batch.

        Args:
            sums: Of the computed terms, by name.
            z_ZH: Representations of the branches, where there is a metric to make of them.
        """
        for name, total in sums.items():
            self.terms[name] += float(total)
        if z_ZH is not None:
            cosine = cosines(z_ZH, batch.branch_index, batch.injection_owner)
            self.cos_counterfactual += float(cosine.counterfactual_T.sum())
            self.cos_injection += float(cosine.injection_J.sum())
        self.nodes += batch.nodes
        self.path_tokens += batch.path_tokens
        self.padded_nodes += batch.input_ids.numel()

    def to_tensor(self) -> Tensor:
        """Float64, in an order that is the same on all workers."""
        values = [
            *self.terms.values(), self.cos_counterfactual, self.cos_injection,
            self.nodes, self.path_tokens, self.padded_nodes,
        ]  # fmt: skip
        return torch.tensor(values, dtype=torch.float64)

    @classmethod
    def from_tensor(cls, values: Tensor) -> StepTotals:
        """What `to_tensor` made, summed over workers or not."""
        numbers = values.tolist()
        terms = {term.name: numbers[i] for i, term in enumerate(objective.TERMS)}
        return cls(terms, *numbers[len(objective.TERMS) :])
