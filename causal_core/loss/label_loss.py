"""The loss terms on labels, and their weighted sum: a part of the logits at a time.

With a vocabulary of 128 thousand, a thousand labels have half a gigabyte of logits, and a loss
written with plain operations keeps several tensors of that size. Here the loss of some labels and
its gradient are computed at once, and only the gradient of their hidden states stays.

Shape legend: n label positions, c of a chunk, m predictions of a group, s injections with
predictions in a chunk, o their triplets, H hidden width, V vocabulary, W weighted terms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from causal_core.trees.labels import LabelChunk, LabelGroup


@dataclass(frozen=True)
class KnownReference:
    """Log-probabilities of a batch's targets without the adapter, where they are known already."""

    values: Mapping[str, Tensor]  # by group: of one triplet after another
    first: Mapping[str, Tensor]  # [T] long: where they begin, by the owner of predictions

    def of(self, name: str, group: LabelGroup) -> Tensor:
        """Of a chunk's predictions [m] in a group, where a triplet's stand together, in order."""
        first_T = self.first[name]
        place_m = torch.arange(len(group), device=group.owner.device)
        begin_T = torch.full_like(first_T, len(group)).scatter_reduce_(
            0, group.owner, place_m, "amin"
        )
        return self.values[name][first_T[group.owner] + place_m - begin_T[group.owner]]


Reference = Tensor | KnownReference  # last hidden states [n, H], or what is known


@dataclass(frozen=True)
class Labels:
    """What a term sees of a chunk of labels."""

    log_p_cV: Tensor
    reference_cV: Tensor | None  # the same of the model without its adapter, for terms that ask
    chunk: LabelChunk
    known: KnownReference | None = None  # or of its targets alone

    def by_injection(self, group: LabelGroup, value_m: Tensor) -> Tensor:
        """Sums [s] of what each injection's predictions have."""
        total_s = value_m.new_zeros(len(self.chunk.injection_owner))
        return total_s.index_add_(0, group.injection, value_m)

    def reference_of(self, group: LabelGroup) -> Tensor:
        """Log-probabilities [m] of a group's targets without the adapter."""
        if self.known is not None:
            name = next(name for name, own in self.chunk.groups.items() if own is group)
            return self.known.of(name, group)
        return self.reference()[group.position, group.target]

    def reference(self) -> Tensor:
        """Log-probabilities [c, V] without the adapter."""
        if self.known is not None:
            raise ValueError("a term asks for more than its targets' own: set distributions=True")
        if self.reference_cV is None:
            raise ValueError("a term asks for the model without its adapter: set reference=True")
        return self.reference_cV


@dataclass(frozen=True)
class Pull:
    """A part of the gradient of a term by the logits of its predictions: g (p - q), towards q."""

    predictions: LabelGroup
    towards: Tensor  # q: token ids [m], which have all of it, or probabilities [m, V]
    strength_m: Tensor | None = None  # g; None: 1


@dataclass(frozen=True)
class InjectionLosses:
    """A term's value of each injection [s], and its gradient."""

    value_s: Tensor
    of: LabelGroup  # whose injections have a value; it is 0 for the others
    pulls: Sequence[Pull]


LabelLoss = Callable[..., InjectionLosses]  # of `Labels` and label groups


@dataclass(frozen=True)
class WeightedTerm:
    """A term on labels: its sum over the predictions of some groups enters the loss by a factor."""

    name: str
    losses: LabelLoss
    groups: tuple[str, ...]
    factor: float


def cross_entropy(labels: Labels, answer: LabelGroup) -> InjectionLosses:
    """-log p(target), summed."""
    value_m = -labels.log_p_cV[answer.position, answer.target]
    value_s = labels.by_injection(answer, value_m)
    return InjectionLosses(value_s, answer, [Pull(answer, answer.target)])


def divergence(labels: Labels, teacher: LabelGroup, student: LabelGroup) -> InjectionLosses:
    """KL(p_teacher || p_student), summed; no gradient reaches the teacher."""
    return _divergence(labels, labels.log_p_cV[teacher.position], student)


def anchor(labels: Labels, answer: LabelGroup) -> InjectionLosses:
    """KL(p_without the adapter || p), summed."""
    return _divergence(labels, labels.reference()[answer.position], answer)


def _divergence(labels: Labels, log_q_mV: Tensor, student: LabelGroup) -> InjectionLosses:
    q_mV = log_q_mV.exp()
    value_m = (q_mV * (log_q_mV - labels.log_p_cV[student.position])).sum(-1)
    return InjectionLosses(labels.by_injection(student, value_m), student, [Pull(student, q_mV)])


def preference(
    labels: Labels, safe: LabelGroup, attack: LabelGroup, *, beta: float
) -> InjectionLosses:
    """-log sigmoid(beta [(log p - log ref)(y*) - (log p - log ref)(r)]) where there is an r.

    Rafailov et al., 2023 (direct preference optimisation); for injections Chen et al., 2024
    (SecAlign). `ref` is the model without its adapter.
    """

    def gained(group: LabelGroup) -> Tensor:
        own_m = labels.log_p_cV[group.position, group.target]
        return labels.by_injection(group, own_m - labels.reference_of(group))

    has_attack_s = labels.by_injection(attack, torch.ones_like(labels.log_p_cV[attack.position, 0]))
    judged_s = (has_attack_s > 0).to(has_attack_s.dtype)
    preferred_s = beta * (gained(safe) - gained(attack))
    strength_s = beta * torch.sigmoid(-preferred_s) * judged_s
    return InjectionLosses(
        -F.logsigmoid(preferred_s) * judged_s,
        attack,
        [
            Pull(safe, safe.target, strength_s[safe.injection]),
            Pull(attack, attack.target, -strength_s[attack.injection]),
        ],
    )


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden_nH: Tensor,
        reference: Reference | None,
        logits_of: Callable[[Tensor], Tensor],
        chunks: Sequence[LabelChunk],
        terms: Sequence[WeightedTerm],
        worst_case: float | None,
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
            reference_cV = None
            if isinstance(reference, Tensor):
                with torch.no_grad():
                    reference_cV = log_p(logits_of(reference.index_select(0, chunk.slots)))
            known = reference if isinstance(reference, KnownReference) else None
            labels = Labels(log_p(logits_cV.detach()), reference_cV, chunk, known)
            chunk_sums_W, by_logits_cV = _sums_and_gradient(labels, terms, worst_case)
            sums_W += chunk_sums_W
            if gradient_nH is not None:
                (by_part_cH,) = torch.autograd.grad(
                    logits_cV, part_cH, by_logits_cV.to(logits_cV.dtype)
                )
                gradient_nH.index_add_(0, chunk.slots, by_part_cH)
            del logits_cV, by_logits_cV, labels, reference_cV
        ctx.save_for_backward(gradient_nH)
        ctx.mark_non_differentiable(sums_W)
        shares = [total * term.factor for total, term in zip(sums_W, terms, strict=True)]
        return torch.stack(shares).sum(), sums_W

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (gradient_nH,) = ctx.saved_tensors
        return gradient_nH * grads[0].to(gradient_nH.dtype), None, None, None, None, None


def label_loss(
    hidden_nH: Tensor,
    logits_of: Callable[[Tensor], Tensor],
    chunks: Sequence[LabelChunk],
    terms: Sequence[WeightedTerm],
    reference: Reference | None = None,
    worst_case: float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum over terms of factor * sum, with the gradient of `hidden_nH`; each term's sum without.

    Args:
        hidden_nH: Last hidden states at the label positions.
        logits_of: [c, H] -> [c, V].
        chunks: See `cut_labels`.
        reference: Of the model without its adapter, where a term asks: the same states, or the
            log-probabilities of the targets.
        worst_case: Temperature tau, in nats: of a triplet with k injections a term's value becomes
            k tau log mean exp(value / tau) over them, which is their sum for a large tau and k
            times the worst for a small one. None: their sum.

    Returns:
        The loss [], in float32 whatever the logits' type (float64 stays), and the sums by name.
    """
    value, sums_W = _ChunkedLoss.apply(hidden_nH, reference, logits_of, chunks, terms, worst_case)
    return value, dict(zip((term.name for term in terms), sums_W.unbind(), strict=True))


def log_p(logits_cV: Tensor) -> Tensor:
    """Log-probabilities, in float32 whatever the logits' type (float64 stays)."""
    wide = torch.promote_types(logits_cV.dtype, torch.float32)
    return F.log_softmax(logits_cV, dim=-1, dtype=wide)


def _sums_and_gradient(
    labels: Labels, terms: Sequence[WeightedTerm], worst_case: float | None
) -> tuple[Tensor, Tensor]:
    """The terms' sums [W], and the gradient of their weighted sum by the logits [c, V].

    That is sum over terms of factor * g (p - q): p is written once, times all factors that pull at
    it, then every q is taken off. `labels` is used up.
    """
    log_p_cV, chunk = labels.log_p_cV, labels.chunk
    sums: list[Tensor] = []
    pulls: list[tuple[Pull, Tensor]] = []  # with the factor [m] of each prediction
    pulled_c1 = log_p_cV.new_zeros(len(log_p_cV), 1)
    for term in terms:
        losses = term.losses(labels, *(chunk.groups[name] for name in term.groups))
        total, weight_s = losses.value_s.sum(), None
        if worst_case is not None:
            total, weight_s = _soft_worst(losses, chunk.injection_owner, worst_case)
        sums.append(total)
        for pull in losses.pulls:
            found = pull.predictions
            by_m = log_p_cV.new_full((len(found),), term.factor)
            if pull.strength_m is not None:
                by_m *= pull.strength_m
            if weight_s is not None:
                by_m *= weight_s[found.injection]
            pulls.append((pull, by_m))
            pulled_c1.index_add_(0, found.position, by_m[:, None])
    gradient_cV = log_p_cV.exp_().mul_(pulled_c1)
    for pull, by_m in pulls:
        if pull.towards.dim() == 2:
            pull.towards.mul_(-by_m[:, None])
            gradient_cV.index_add_(0, pull.predictions.position, pull.towards)
    for pull, by_m in pulls:
        if pull.towards.dim() == 1:
            place = (pull.predictions.position, pull.towards)
            gradient_cV.index_put_(place, -by_m, accumulate=True)
    return torch.stack(sums), gradient_cV


def _soft_worst(
    losses: InjectionLosses, owner_s: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Sum over triplets of k tau log mean exp(value / tau), and its derivative [s] by each value.

    Over the injections that the term has predictions of, k of a triplet's.
    """
    value_s = losses.value_s
    has_s = torch.zeros_like(value_s).index_fill_(0, losses.of.injection, 1.0)
    # As many places as injections: triplets are no more, and nothing has to be counted first.
    count_o = torch.zeros_like(value_s).index_add_(0, owner_s, has_s)
    scaled_s = (value_s / temperature).masked_fill(has_s == 0, -torch.inf)
    top_o = torch.full_like(value_s, -torch.inf).scatter_reduce_(0, owner_s, scaled_s, "amax")
    top_o = top_o.masked_fill(count_o == 0, 0.0)
    grown_s = (scaled_s - top_o[owner_s]).exp()
    sum_o = torch.zeros_like(value_s).index_add_(0, owner_s, grown_s)
    some_o = count_o.clamp(min=1.0)
    log_mean_o = top_o + (sum_o.masked_fill(count_o == 0, 1.0) / some_o).log()
    weight_s = count_o[owner_s] * grown_s / sum_o[owner_s].clamp(min=1e-30)
    return (count_o * temperature * log_mean_o).sum(), weight_s
