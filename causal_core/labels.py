"""Which nodes predict which labels, and the loss on them: a part of the logits at a time.

With a vocabulary of 128 thousand, a thousand labels have half a gigabyte of logits, and a loss
written with plain operations keeps several tensors of that size. Here the loss of some labels and
its gradient are computed at once, and only the gradient of their hidden states stays.

Shape legend: n label positions, c of a chunk, m predictions of a group, H hidden width, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from causal_core.device import to_device

# Enough rows for a product with the output embeddings to be worth reading them.
LABELS_AT_ONCE = 128


@dataclass
class LabelGroup:
    """Next-token predictions of one kind, e.g. the answer tokens on the benign branch.

    `position` [m] indexes label positions, `target` [m] holds token ids and `owner` [m] the
    triplet (its number within the batch) that each prediction belongs to.
    """

    position: Tensor
    target: Tensor
    owner: Tensor

    def __len__(self) -> int:
        return len(self.target)

    def to(self, device: torch.device) -> LabelGroup:
        return LabelGroup(*(to_device(getattr(self, f.name), device) for f in fields(self)))

    @classmethod
    def of(cls, entries: Sequence[tuple[int, int, int]]) -> LabelGroup:
        """From (position, target, owner) of each prediction."""
        columns = torch.tensor(entries, dtype=torch.long).reshape(-1, 3)
        return cls(columns[:, 0], columns[:, 1], columns[:, 2])


@dataclass
class LabelChunk:
    """Some triplets' predictions; the groups' positions index `slots`."""

    slots: Tensor  # [c] long: of the batch's label positions
    groups: dict[str, LabelGroup]

    def to(self, device: torch.device) -> LabelChunk:
        groups = {name: group.to(device) for name, group in self.groups.items()}
        return LabelChunk(to_device(self.slots, device), groups)


def cut_labels(
    entries: Mapping[str, Sequence[tuple[int, int, int]]], at_once: int = LABELS_AT_ONCE
) -> list[LabelChunk]:
    """Chunks of at most `at_once` positions, a triplet's predictions together.

    A triplet with more is a chunk by itself: one term compares its predictions with each other.

    Args:
        entries: (position, target, owner) of each prediction by group.
    """
    by_owner: dict[int, list[tuple[str, int, int]]] = {}
    for name, group in entries.items():
        for position, target, owner in group:
            by_owner.setdefault(owner, []).append((name, position, target))
    chunks: list[LabelChunk] = []
    slots: dict[int, int] = {}
    parts: dict[str, list[tuple[int, int, int]]] = {name: [] for name in entries}

    def close() -> None:
        if slots:
            groups = {name: LabelGroup.of(part) for name, part in parts.items()}
            chunks.append(LabelChunk(torch.tensor(list(slots), dtype=torch.long), groups))
            slots.clear()
            for part in parts.values():
                part.clear()

    for owner, predictions in by_owner.items():
        new = {position for _, position, _ in predictions} - slots.keys()
        if len(slots) + len(new) > at_once:
            close()
        for name, position, target in predictions:
            parts[name].append((slots.setdefault(position, len(slots)), target, owner))
    close()
    return chunks


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
