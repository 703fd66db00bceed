"""The loss terms on representations: pure tensor functions that return sums. Those on labels are
in `label_loss.py`.

A sum is divided later by the term's own count over the *global* batch, so that the gradient does
not depend on how the batch is cut into micro-batches and workers (invariant I2).

Shape legend: T triplets, H width of the representation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from causal_core.device import at_least_float32


def cosines(z_T3H: Tensor) -> tuple[Tensor, Tensor]:
    """cos(z_U, z_U') and cos(z_U, z_U*), each [T], in float32."""
    z = F.normalize(at_least_float32(z_T3H), dim=-1)
    return (z[:, 0] * z[:, 1]).sum(-1), (z[:, 0] * z[:, 2]).sum(-1)


def pull_sum(cos_counterfactual_T: Tensor, temperature: float) -> Tensor:
    """The reports' `causal` term: -cos(z_U, z_U') / temperature, summed."""
    return -cos_counterfactual_T.sum() / temperature


def push_sum(cos_injection_T: Tensor, temperature: float) -> Tensor:
    """The reports' `spurious` term: cos(z_U, z_U*) / temperature, summed."""
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


def contrastive_sums(
    kind: str, z_T3H: Tensor, temperature: float, margin: float
) -> dict[str, Tensor]:
    """The `causal` and `spurious` sums of a contrastive kind.

    `causal_contrastive` has both; the joint kinds (`info_nce`, `triplet`) pull and push within
    `causal`, and their `spurious` is zero.
    """
    cos_cf, cos_inj = cosines(z_T3H)
    if kind == "causal_contrastive":
        return {
            "causal": pull_sum(cos_cf, temperature),
            "spurious": push_sum(cos_inj, temperature),
        }
    if kind == "info_nce":
        joint = info_nce_sum(cos_cf, cos_inj, temperature)
    elif kind == "triplet":
        joint = triplet_margin_sum(cos_cf, cos_inj, margin)
    else:
        raise ValueError(f"unknown contrastive kind {kind!r}")
    return {"causal": joint, "spurious": joint.new_zeros(())}
