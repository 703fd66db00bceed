"""Which nodes predict which labels, and the loss on them: a part of the logits at a time.

With a vocabulary of 128 thousand, a thousand labels have half a gigabyte of logits, and a loss
written with plain operations keeps several tensors of that size. Here the loss of some labels and
its gradient are computed at once, and only the gradient of their hidden states stays.

Shape legend: n label positions, c of a chunk, m predictions of a group, H hidden width, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from causal_core.trees.labels import LabelChunk


@dataclass(frozen=True)
class LabelTerms:
    """The weighted terms: each group's with the factor that its sum enters the loss with."""

    cross_entropy: dict[str, float]  # -log p(target), by group
    divergence: tuple[str, str, float] | None = None  # KL(teacher || student): groups and factor


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: Tensor,
        logits_of: Callable[[Tensor], Tensor],
        chunks: Sequence[LabelChunk],
        terms: LabelTerms,
    ) -> tuple[Tensor, Tensor]:
        """hidden [n, H] -> the weighted loss [], the terms' plain sums [groups (+ 1)]."""
        needed = ctx.needs_input_grad[0]
        gradient = torch.zeros_like(hidden) if needed else None
        wide = torch.promote_types(hidden.dtype, torch.float32)
        factors = [*terms.cross_entropy.values()]
        factors += [terms.divergence[2]] if terms.divergence else []
        sums = torch.zeros(len(factors), dtype=wide, device=hidden.device)
        for chunk in chunks:
            with torch.set_grad_enabled(needed):
                part = hidden.index_select(0, chunk.slots).detach().requires_grad_(needed)
                logits = logits_of(part)
            chunk_sums, by_logits = _sums_and_gradient(logits.detach(), chunk, terms)
            sums += chunk_sums
            if gradient is not None:
                (by_part,) = torch.autograd.grad(logits, part, by_logits.to(logits.dtype))
                gradient.index_add_(0, chunk.slots, by_part)
            del logits, by_logits
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(sums)
        return (sums * sums.new_tensor(factors)).sum(), sums

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0].to(gradient.dtype), None, None, None


def label_loss(
    hidden: Tensor,
    logits_of: Callable[[Tensor], Tensor],
    chunks: Sequence[LabelChunk],
    terms: LabelTerms,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum over terms of factor * sum, with the gradient of `hidden`; each term's sum without.

    Args:
        hidden: [n, H] last hidden states at the label positions.
        logits_of: [c, H] -> [c, V].
        chunks: See `cut_labels`.

    Returns:
        The loss [], in float32 whatever the logits' type (float64 stays), and the sums by name: a
        group's for a cross-entropy, `divergence`.
    """
    names = [*terms.cross_entropy, *(["divergence"] if terms.divergence else [])]
    value, sums = _ChunkedLoss.apply(hidden, logits_of, chunks, terms)
    return value, dict(zip(names, sums.unbind(), strict=True))


def _sums_and_gradient(
    logits: Tensor, chunk: LabelChunk, terms: LabelTerms
) -> tuple[Tensor, Tensor]:
    """The terms' sums, and the gradient of their weighted sum by the logits [c, V].

    d(-log p_t) = p - e_t; d KL(p' || p) = p - p' by the student's logits, nothing by the teacher's.
    """
    log_p = F.log_softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    sums = []
    weight = log_p.new_zeros(len(log_p), 1)  # factor of p in each row's gradient
    for name, factor in terms.cross_entropy.items():
        group = chunk.groups[name]
        sums.append(-log_p[group.position, group.target].sum())
        weight.index_add_(0, group.position, weight.new_full((len(group), 1), factor))
    if terms.divergence:
        teacher, student, share = terms.divergence
        clean, attacked = (chunk.groups[name].position for name in (teacher, student))
        log_teacher = log_p[clean]
        teacher_p = log_teacher.exp()
        sums.append((teacher_p * (log_teacher - log_p[attacked])).sum())
        weight.index_add_(0, attacked, weight.new_full((len(attacked), 1), share))
    gradient = log_p.exp_().mul_(weight)
    if terms.divergence:
        gradient.index_add_(0, attacked, teacher_p, alpha=-share)
    for name, factor in terms.cross_entropy.items():
        group = chunk.groups[name]
        less = gradient.new_full((len(group),), -factor)
        gradient.index_put_((group.position, group.target), less, accumulate=True)
    return torch.stack(sums), gradient
