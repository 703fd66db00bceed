"""The loss terms on representations: pure tensor functions that return sums, and the metrics on
the same cosines. The terms on labels are in `label_loss.py`.

A sum is divided later by the term's own count over the *global* batch, so that the gradient does
not depend on how the batch is cut into micro-batches and workers (invariant I2).

Shape legend: Z pooled branches, T triplets, J injections, H width of the representation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from causal_core.config import LossSection
from causal_core.device import at_least_float32
from causal_core.trees.needs import BENIGN, COUNTERFACTUAL, INJECTION

Value = TypeVar("Value", float, Tensor)


@dataclass(frozen=True)
class Cosines:
    """Cosines between the representations of U and the other branches, in float32 at least."""

    counterfactual_T: Tensor  # cos(z_U, z_U')
    injection_J: Tensor  # cos(z_U, z_U*)
    owner_J: Tensor  # the triplet (position in T) of each injection

    def share_J(self) -> Tensor:
        """1 / number of its triplet's injections, of each injection."""
        ones_J = torch.ones_like(self.injection_J)
        count_T = torch.zeros_like(self.counterfactual_T).index_add(0, self.owner_J, ones_J)
        return ones_J / count_T[self.owner_J]


def cosines(z_ZH: Tensor, branch_index: Mapping[str, Tensor], owner_J: Tensor) -> Cosines:
    """Of a batch's pooled branches (see `TreeBatch` for the indices)."""
    z = F.normalize(at_least_float32(z_ZH), dim=-1)
    benign_TH = z[branch_index[BENIGN]]
    counterfactual_TH = z[branch_index[COUNTERFACTUAL]]
    # Without any injection in the batch there is none to pool.
    injection_JH = z[branch_index[INJECTION]] if INJECTION in branch_index else z[:0]
    return Cosines(
        (benign_TH * counterfactual_TH).sum(-1),
        (benign_TH[owner_J] * injection_JH).sum(-1),
        owner_J,
    )


def causal_metrics(cos_counterfactual: Value, cos_injection: Value) -> dict[str, Value]:
    """The reports' three metrics, of a triplet's cosines or of their means."""
    return {
        "causal_stability": cos_counterfactual,
        "spurious_separation": 1.0 - cos_injection,
        "causal_discrimination": cos_counterfactual - cos_injection,
    }


def causal_sum(cosine: Cosines, loss: LossSection) -> Tensor:
    """The `causal` term in the form that the config chooses; the joint ones push, too.

    Of a triplet with several injections a joint form is the mean over them.
    """
    if loss.contrastive == "causal_contrastive":
        return pull_sum(cosine.counterfactual_T, loss.temperature)
    stays_J = cosine.counterfactual_T[cosine.owner_J]
    if loss.contrastive == "info_nce":
        values_J = info_nce(stays_J, cosine.injection_J, loss.temperature)
    else:
        values_J = triplet_margin(stays_J, cosine.injection_J, loss.margin)
    return (values_J * cosine.share_J()).sum()


def spurious_sum(cosine: Cosines, loss: LossSection) -> Tensor:
    """The `spurious` term; the joint forms have none, and the config gives it no weight there."""
    return push_sum(cosine.injection_J, loss.temperature)


def pull_sum(cos_counterfactual_T: Tensor, temperature: float) -> Tensor:
    """-cos(z_U, z_U') / temperature, summed."""
    return -cos_counterfactual_T.sum() / temperature


def push_sum(cos_injection_J: Tensor, temperature: float) -> Tensor:
    """cos(z_U, z_U*) / temperature, summed."""
    return cos_injection_J.sum() / temperature


def info_nce(cos_counterfactual: Tensor, cos_injection: Tensor, temperature: float) -> Tensor:
    """-log softmax of U' over {U', U*} by cosine / temperature (van den Oord et al., 2018)."""
    scores = torch.stack([cos_counterfactual, cos_injection], dim=-1) / temperature
    return -F.log_softmax(scores, dim=-1)[:, 0]


def triplet_margin(cos_counterfactual: Tensor, cos_injection: Tensor, margin: float) -> Tensor:
    """max(0, margin - cos(z_U, z_U') + cos(z_U, z_U*)) (Schroff et al., 2015)."""
    return F.relu(margin - cos_counterfactual + cos_injection)
