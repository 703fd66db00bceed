"""The loss terms on representations: pure tensor functions that return sums, and the metrics on
the same cosines. The terms on labels are in `label_loss.py`.

A sum is divided later by the term's own count over the *global* batch, so that the gradient does
not depend on how the batch is cut into micro-batches and workers (invariant I2).

Shape legend: T triplets, H width of the representation.
"""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from causal_core.config import LossSection
from causal_core.device import at_least_float32

Value = TypeVar("Value", float, Tensor)


def cosines(z_T3H: Tensor) -> tuple[Tensor, Tensor]:
    """cos(z_U, z_U') and cos(z_U, z_U*), each [T], in float32."""
    z = F.normalize(at_least_float32(z_T3H), dim=-1)
    return (z[:, 0] * z[:, 1]).sum(-1), (z[:, 0] * z[:, 2]).sum(-1)


def causal_metrics(cos_counterfactual: Value, cos_injection: Value) -> dict[str, Value]:
    """The reports' three metrics, of a triplet's cosines or of their means."""
    return {
        "causal_stability": cos_counterfactual,
        "spurious_separation": 1.0 - cos_injection,
        "causal_discrimination": cos_counterfactual - cos_injection,
    }


def causal_sum(cos_counterfactual_T: Tensor, cos_injection_T: Tensor, loss: LossSection) -> Tensor:
    """The `causal` term in the form that the config chooses; the joint ones push, too."""
    match loss.contrastive:
        case "causal_contrastive":
            return pull_sum(cos_counterfactual_T, loss.temperature)
        case "info_nce":
            return info_nce_sum(cos_counterfactual_T, cos_injection_T, loss.temperature)
        case "triplet":
            return triplet_margin_sum(cos_counterfactual_T, cos_injection_T, loss.margin)


def spurious_sum(
    cos_counterfactual_T: Tensor, cos_injection_T: Tensor, loss: LossSection
) -> Tensor:
    """The `spurious` term; the joint forms have none, and the config gives it no weight there."""
    return push_sum(cos_injection_T, loss.temperature)


def pull_sum(cos_counterfactual_T: Tensor, temperature: float) -> Tensor:
    """-cos(z_U, z_U') / temperature, summed."""
    return -cos_counterfactual_T.sum() / temperature


def push_sum(cos_injection_T: Tensor, temperature: float) -> Tensor:
    """cos(z_U, z_U*) / temperature, summed."""
    return cos_injection_T.sum() / temperature


def info_nce_sum(
    cos_counterfactual_T: Tensor, cos_injection_T: Tensor, temperature: float
) -> Tensor:
    """-log softmax of U' over {U', U*} by cosine / temperature (van den Oord et al., 2018)."""
    scores = torch.stack([cos_counterfactual_T, cos_injection_T], dim=-1) / temperature
    return -F.log_softmax(scores, dim=-1)[:, 0].sum()


def triplet_margin_sum(
    cos_counterfactual_T: Tensor, cos_injection_T: Tensor, margin: float
) -> Tensor:
    """max(0, margin - cos(z_U, z_U') + cos(z_U, z_U*)), summed (Schroff et al., 2015)."""
    return F.relu(margin - cos_counterfactual_T + cos_injection_T).sum()
