"""The objective: the table of its terms, and their weighted sum.

A new term is a row of `TERMS`, a function in `label_loss` or `contrastive`, a field `lambda_NAME`
of the config's loss section, its line in docs/losses.md and its definition by plain forwards in
tests/tiny.py. Everything else reads the table.

Shape legend: Z pooled branches, n label positions, H width of the representation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from causal_core.config import LossSection
from causal_core.loss.contrastive import Cosines, causal_sum, cosines, spurious_sum
from causal_core.loss.label_loss import (
    LabelLoss,
    Reference,
    WeightedTerm,
    anchor,
    cross_entropy,
    divergence,
    label_loss,
    preference,
)
from causal_core.model.causal_model import CausalModel, CausalOutput
from causal_core.model.lora import without_adapter
from causal_core.tokens.triplet import TripletTokens
from causal_core.trees.needs import (
    ATTACK,
    BENIGN,
    BRANCHES,
    ROBUST,
    SHARED_ATTACKED,
    SHARED_CLEAN,
    TASK,
    Needs,
)
from causal_core.trees.prefix_tree import TreeBatch


@dataclass(frozen=True, kw_only=True)
class Term:
    """A row of the table: a sum over the global batch, divided by a count over the same."""

    name: str  # `loss_NAME` in metrics, `loss.lambda_NAME` in the config
    formula: str  # of one triplet
    effect: str
    source: str
    denominator: str  # what is counted ...
    count: Callable[[TripletTokens], int]  # ... and how much of it a triplet has
    always: bool = False  # computed and reported without weight, too

    @property
    def weight(self) -> str:
        """The config's field of its weight."""
        return f"lambda_{self.name}"


@dataclass(frozen=True, kw_only=True)
class LabelTerm(Term):
    """A term on the predictions of label groups."""

    groups: tuple[str, ...]
    losses: LabelLoss  # of a chunk's labels and these groups
    reference: bool = False  # asks for the log-probabilities of the model without its adapter
    distributions: bool = False  # ... of all tokens, not of the targets alone
    options: tuple[str, ...] = ()  # fields of the config's loss section that `losses` takes, too


@dataclass(frozen=True, kw_only=True)
class RepresentationTerm(Term):
    """A term on the projected representations of all three branches."""

    sum: Callable[[Cosines, LossSection], Tensor]


def _each(triplet: TripletTokens) -> int:
    return 1


def _injections(triplet: TripletTokens) -> int:
    return len(triplet.injections)


TERMS: tuple[Term, ...] = (
    LabelTerm(
        name="task",
        formula="CE(y | S, U)",
        effect="keeps the model doing its job on benign input",
        source="supervised fine-tuning",
        denominator="answer tokens",
        count=lambda triplet: len(triplet.benign_answer),
        groups=(TASK,),
        losses=cross_entropy,
        always=True,
    ),
    RepresentationTerm(
        name="causal",
        formula="-cos(z_U, z_U') / tau",
        effect="pulls the representations of two benign inputs of one instruction together",
        source="the reports",
        denominator="triplets",
        count=_each,
        sum=causal_sum,
    ),
    RepresentationTerm(
        name="spurious",
        formula="cos(z_U, z_U*) / tau",
        effect="pushes the representation of the injected input away",
        source="the reports",
        denominator="injections",
        count=_injections,
        sum=spurious_sum,
    ),
    LabelTerm(
        name="robust",
        formula="CE(y* | S, U*)",
        effect="trains the safe answer under attack",
        source="published injection defences (StruQ)",
        denominator="safe-answer tokens",
        count=lambda triplet: sum(len(i.answer) for i in triplet.injections),
        groups=(ROBUST,),
        losses=cross_entropy,
    ),
    LabelTerm(
        name="invariance",
        formula="KL(sg p(y | S, U) || p(y | S, U*))",
        effect="makes the answer distribution under attack equal the one without it, token by "
        "token on the shared answer; no gradient flows into the clean side; only for triplets "
        "with *y\\** = *y*",
        source="this project, after the reports' definition of causal robustness",
        denominator="shared answer tokens",
        count=lambda triplet: sum(len(triplet.shared_answer(i)) for i in triplet.injections),
        groups=(SHARED_CLEAN, SHARED_ATTACKED),
        losses=divergence,
    ),
    LabelTerm(
        name="preference",
        formula="-log sigmoid(beta [(log p - log ref)(y* | S, U*) - (log p - log ref)(r | S, U*)])",
        effect="prefers the safe answer to *r*, what the attack wants, more than the model without "
        "its adapter (*ref*) does",
        source="direct preference optimisation (Rafailov et al., 2023), for injections SecAlign "
        "(Chen et al., 2024)",
        denominator="injections with an *r*",
        count=lambda triplet: sum(bool(i.attack_answer) for i in triplet.injections),
        groups=(ROBUST, ATTACK),
        losses=preference,
        reference=True,
        options=("beta",),
    ),
    LabelTerm(
        name="anchor",
        formula="KL(ref(y | S, U) || p(y | S, U))",
        effect="keeps the answers to benign input near those of the model without its adapter "
        "(*ref*)",
        source="the penalty of reinforcement learning from human feedback (Ziegler et al., 2019)",
        denominator="answer tokens",
        count=lambda triplet: len(triplet.benign_answer),
        groups=(TASK,),
        losses=anchor,
        reference=True,
        distributions=True,
    ),
)


def computed_terms(loss: LossSection) -> list[Term]:
    """The terms with weight, and those that are reported in any case."""
    weights = loss.weights()
    return [term for term in TERMS if term.always or weights[term.name] > 0]


def is_contrastive(loss: LossSection) -> bool:
    """Whether a term on representations has weight."""
    return any(isinstance(term, RepresentationTerm) for term in computed_terms(loss))


def needs_reference(loss: LossSection) -> bool:
    """Whether a term asks for the model without its adapter."""
    return any(isinstance(term, LabelTerm) and term.reference for term in computed_terms(loss))


def reference_groups(loss: LossSection) -> tuple[str, ...]:
    """The label groups whose targets' log-probabilities without the adapter are all that terms ask
    of it; none where a term asks for whole distributions."""
    terms = [t for t in computed_terms(loss) if isinstance(t, LabelTerm) and t.reference]
    if any(term.distributions for term in terms):
        return ()
    return tuple(dict.fromkeys(group for term in terms for group in term.groups))


def needs_of(loss: LossSection) -> Needs:
    """What the computed terms need of each triplet; nothing else is computed.

    U is always pooled, so that the head takes part in every backward.
    """
    labels = [term for term in computed_terms(loss) if isinstance(term, LabelTerm)]
    groups = dict.fromkeys(group for term in labels for group in term.groups)
    return Needs(BRANCHES if is_contrastive(loss) else (BENIGN,), tuple(groups))


@dataclass(frozen=True)
class Denominators:
    """Counts over the whole global batch; every worker derives them from the data alone."""

    triplets: int
    by_term: Mapping[str, int]

    @classmethod
    def of(cls, triplets: Sequence[TripletTokens]) -> Denominators:
        by_term = {term.name: sum(map(term.count, triplets)) for term in TERMS}
        return cls(len(triplets), by_term)


def factors_of(loss: LossSection, denominators: Denominators) -> dict[str, float]:
    """What each term's sum enters the loss with: its weight by its global denominator."""
    counts = denominators.by_term
    return {name: weight / max(1, counts[name]) for name, weight in loss.weights().items()}


def representation_loss(
    cosine: Cosines, loss: LossSection, factors: Mapping[str, float]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted terms on representations, and each one's sum."""
    terms = [term for term in computed_terms(loss) if isinstance(term, RepresentationTerm)]
    sums = {term.name: term.sum(cosine, loss) for term in terms}
    return torch.stack([total * factors[name] for name, total in sums.items()]).sum(), sums


def _with_options(term: LabelTerm, loss: LossSection) -> LabelLoss:
    if not term.options:
        return term.losses
    return functools.partial(term.losses, **{name: getattr(loss, name) for name in term.options})


@torch.no_grad()
def reference_hidden(model: CausalModel, batch: TreeBatch) -> Tensor:
    """Last hidden states [n, H] at a batch's label positions without the adapter."""
    was_training = model.training
    model.eval()
    try:
        with without_adapter(model):
            return model(batch).label_hidden
    finally:
        model.train(was_training)


def micro_batch_loss(
    model: CausalModel,
    output: CausalOutput,
    batch: TreeBatch,
    loss: LossSection,
    denominators: Denominators,
    reference: Reference | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """This micro-batch's share of L, and the sum of each computed term without a gradient.

    Args:
        reference: Where a term asks for the model without its adapter: of `reference_hidden`, or
            what is known of the batch's targets.
    """
    factors = factors_of(loss, denominators)
    labels = [
        WeightedTerm(term.name, _with_options(term, loss), term.groups, factors[term.name])
        for term in computed_terms(loss)
        if isinstance(term, LabelTerm)
    ]
    value, sums = label_loss(
        output.label_hidden, model.logits, batch.labels, labels, reference, loss.worst_case
    )
    if is_contrastive(loss):
        cosine = cosines(output.z, batch.branch_index, batch.injection_owner)
        contrast, found = representation_loss(cosine, loss, factors)
        value = value + contrast
        sums.update({name: total.detach() for name, total in found.items()})
    return value, sums
