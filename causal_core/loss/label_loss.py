"""The loss terms on labels, and their weighted sum: a part of the logits at a time.

With a vocabulary of 128 thousand, a thousand labels have half a gigabyte of logits, and a loss
written with plain operations keeps several tensors of that size. Here the loss of some labels and
its gradient are computed at once, and only the gradient of their hidden states stays.

Shape legend: n label positions, c of a chunk, m predictions of a group, H hidden width, V
vocabulary, W weighted sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from causal_core.trees.labels import LabelChunk, LabelGroup


@dataclass(frozen=True)
class Pull:
    """The gradient of a term's sum by the logits of its predictions: p - q, towards q."""

    position_m: Tensor  # of the chunk's label positions
    towards: Tensor  # q: token ids [m], which have all of it, or probabilities [m, V]


LabelSum = Callable[..., tuple[Tensor, Pull]]  # of log-probabilities [c, V] and label groups


@dataclass(frozen=True)
class WeightedSum:
    """A term on labels: its sum over the predictions of some groups enters the loss by a factor."""

    name: str
    sum: LabelSum
    groups: tuple[str, ...]
    factor: float


def cross_entropy(log_p_cV: Tensor, answer: LabelGroup) -> tuple[Tensor, Pull]:
    """-log p(target), summed."""
    return (
        -log_p_cV[answer.position, answer.target].sum(),
        Pull(answer.position, answer.target),
    )


def divergence(log_p_cV: Tensor, teacher: LabelGroup, student: LabelGroup) -> tuple[Tensor, Pull]:
    """KL(p_teacher || p_student), summed; no gradient reaches the teacher."""
    log_teacher_mV = log_p_cV[teacher.position]
    teacher_mV = log_teacher_mV.exp()
    return (
        (teacher_mV * (log_teacher_mV - log_p_cV[student.position])).sum(),
        Pull(student.position, teacher_mV),
    )


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden_nH: Tensor,
        logits_of: Callable[[Tensor], Tensor],
        chunks: Sequence[LabelChunk],
        terms: Sequence[WeightedSum],
    ) -> tuple[Tensor, Tensor]:
        """The weighted loss [] and the terms' plain sums [W]."""
        needed = ctx.needs_input_grad[0]
        gradient_nH = torch.zeros_like(hidden_nH) if needed else None
        wide = torch.promote_types(hidden_nH.dtype, torch.float32)
        sums_W = torch.zeros(len(terms), dtype=wide, device=hidden_nH.device)
        for chunk in chunks:
            with torch.set_grad_enabled(needed):
                part_cH = hidden_nH.index_select(0, chunk.slots).detach().requires_grad_(needed)
                logits_cV = logits_of(part_cH)
            chunk_sums_W, by_logits_cV = _sums_and_gradient(logits_cV.detach(), chunk, terms)
            sums_W += chunk_sums_W
            if gradient_nH is not None:
                (by_part_cH,) = torch.autograd.grad(
                    logits_cV, part_cH, by_logits_cV.to(logits_cV.dtype)
                )
                gradient_nH.index_add_(0, chunk.slots, by_part_cH)
            del logits_cV, by_logits_cV
        ctx.save_for_backward(gradient_nH)
        ctx.mark_non_differentiable(sums_W)
        return (sums_W * sums_W.new_tensor([term.factor for term in terms])).sum(), sums_W

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (gradient_nH,) = ctx.saved_tensors
        return gradient_nH * grads[0].to(gradient_nH.dtype), None, None, None


def label_loss(
    hidden_nH: Tensor,
    logits_of: Callable[[Tensor], Tensor],
    chunks: Sequence[LabelChunk],
    terms: Sequence[WeightedSum],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum over terms of factor * sum, with the gradient of `hidden_nH`; each term's sum without.

    Args:
        hidden_nH: Last hidden states at the label positions.
        logits_of: [c, H] -> [c, V].
        chunks: See `cut_labels`.

    Returns:
        The loss [], in float32 whatever the logits' type (float64 stays), and the sums by name.
    """
    value, sums_W = _ChunkedLoss.apply(hidden_nH, logits_of, chunks, terms)
    return value, dict(zip((term.name for term in terms), sums_W.unbind(), strict=True))


def _sums_and_gradient(
    logits_cV: Tensor, chunk: LabelChunk, terms: Sequence[WeightedSum]
) -> tuple[Tensor, Tensor]:
    """The terms' sums [W], and the gradient of their weighted sum by the logits [c, V].

    That is sum over terms of factor * (p - q): p is written once, times all factors that pull at
    it, then every q is taken off.
    """
    wide = torch.promote_types(logits_cV.dtype, torch.float32)
    log_p_cV = F.log_softmax(logits_cV, dim=-1, dtype=wide)
    sums: list[Tensor] = []
    pulls: list[tuple[Pull, float]] = []
    pulled_c1 = log_p_cV.new_zeros(len(log_p_cV), 1)
    for term in terms:
        total, pull = term.sum(log_p_cV, *(chunk.groups[name] for name in term.groups))
        sums.append(total)
        pulls.append((pull, term.factor))
        by_m1 = pulled_c1.new_full((len(pull.position_m), 1), term.factor)
        pulled_c1.index_add_(0, pull.position_m, by_m1)
    gradient_cV = log_p_cV.exp_().mul_(pulled_c1)
    for pull, factor in pulls:
        if pull.towards.dim() == 2:
            gradient_cV.index_add_(0, pull.position_m, pull.towards, alpha=-factor)
    for pull, factor in pulls:
        if pull.towards.dim() == 1:
            less_m = gradient_cV.new_full((len(pull.position_m),), -factor)
            gradient_cV.index_put_((pull.position_m, pull.towards), less_m, accumulate=True)
    return torch.stack(sums), gradient_cV
