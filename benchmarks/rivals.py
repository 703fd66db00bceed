"""The training steps that ours is compared with, each as its users would write it.

All compute the reports' objective (task cross-entropy, pull U and U', push U*) of the same
triplets with the same weights, through plain transformers + PEFT. Every one accumulates gradients
over micro-batches and divides by the counts of the whole batch, so their gradients can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from causal_core.config import LossSection
from causal_core.loss.objective import Denominators, factors_of, representation_loss
from causal_core.model.causal_model import CausalModel
from causal_core.tokens.triplet import TripletTokens

IGNORED = -100
Step = Callable[[CausalModel, Sequence[TripletTokens], LossSection], float]


def reports_step(batch: int = 2, length: int = 768) -> Step:
    """(a) The reports': three branches in one forward, padded to `length`, hidden states of all
    layers kept, logits of every position."""

    def step(model: CausalModel, triplets: Sequence[TripletTokens], loss: LossSection) -> float:
        base = model.peft_model
        total, counts = 0.0, Denominators.of(triplets)
        for group in _groups(triplets, batch):
            ids, mask, labels = _padded([s for t in group for s in _branches(t)], length)
            output = base(input_ids=ids, attention_mask=mask, output_hidden_states=True)
            pooled = _pool(output.hidden_states[-1], mask & (labels == IGNORED))
            z = model.projection(pooled.view(len(group), 3, -1))
            benign = slice(0, None, 3)
            shifted = output.logits[benign, :-1].flatten(0, 1)
            task = F.cross_entropy(
                shifted, labels[benign, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
            )
            total += _backward(task, z, loss, counts)
        return total

    return step


def padded_step(batch: int = 4) -> Step:
    """(b) Three branches in one forward, padded to the longest; logits of the benign rows only."""

    def step(model: CausalModel, triplets: Sequence[TripletTokens], loss: LossSection) -> float:
        total, counts = 0.0, Denominators.of(triplets)
        for group in _groups(triplets, batch):
            ids, mask, labels = _padded([s for t in group for s in _branches(t)])
            hidden = _decoder(model)(input_ids=ids, attention_mask=mask, use_cache=False)[0]
            pooled = _pool(hidden, mask & (labels == IGNORED))
            z = model.projection(pooled.view(len(group), 3, -1))
            task = _task(model, hidden[0::3], labels[0::3])
            total += _backward(task, z, loss, counts)
        return total

    return step


def separate_forwards_step(batch: int = 4) -> Step:
    """(c) One forward per branch, each padded to its own longest."""

    def step(model: CausalModel, triplets: Sequence[TripletTokens], loss: LossSection) -> float:
        total, counts = 0.0, Denominators.of(triplets)
        for group in _groups(triplets, batch):
            pooled, task = [], None
            for branch in range(3):
                ids, mask, labels = _padded([_branches(t)[branch] for t in group])
                hidden = _decoder(model)(input_ids=ids, attention_mask=mask, use_cache=False)[0]
                pooled.append(_pool(hidden, mask & (labels == IGNORED)))
                if branch == 0:
                    task = _task(model, hidden, labels)
            assert task is not None
            total += _backward(task, model.projection(torch.stack(pooled, 1)), loss, counts)
        return total

    return step


def unpadded_step() -> Step:
    """(d) Every branch of every triplet by an unpadded forward of its own."""

    def step(model: CausalModel, triplets: Sequence[TripletTokens], loss: LossSection) -> float:
        total, counts = 0.0, Denominators.of(triplets)
        for triplet in triplets:
            pooled, task = [], None
            for prompt, answer in _branches(triplet):
                ids = torch.tensor([prompt + answer])
                hidden = _decoder(model)(input_ids=ids, use_cache=False)[0]
                pooled.append(hidden[:, : len(prompt)].mean(1))
                if answer:
                    labels = torch.tensor([[IGNORED] * len(prompt) + answer])
                    task = _task(model, hidden, labels)
            assert task is not None
            total += _backward(task, model.projection(torch.stack(pooled, 1)), loss, counts)
        return total

    return step


def _branches(t: TripletTokens) -> list[tuple[list[int], list[int]]]:
    """Prompt and answer of the three branches; only the benign one is answered."""
    return [
        (t.system + t.benign, t.benign_answer),
        (t.system + t.counterfactual, []),
        *((t.system + injection.prompt, []) for injection in t.injections),
    ]


def _padded(
    sequences: list[tuple[list[int], list[int]]], length: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Right-padded ids and mask (True on tokens) and labels (`IGNORED` off the answer), [R, L]."""
    width = length or max(len(p) + len(a) for p, a in sequences)
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    mask = torch.zeros(len(sequences), width, dtype=torch.bool)
    labels = torch.full((len(sequences), width), IGNORED)
    for row, (prompt, answer) in enumerate(sequences):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        mask[row, :end] = True
        labels[row, len(prompt) : end] = torch.tensor(answer, dtype=torch.long)
    return ids, mask, labels


def _pool(hidden: Tensor, where: Tensor) -> Tensor:
    weights = where.to(hidden.dtype)[..., None]
    return (hidden * weights).sum(1) / weights.sum(1)


def _task(model: CausalModel, hidden: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the answers, with logits where there is an answer to predict."""
    where = labels[:, 1:] != IGNORED
    logits = model.peft_model.get_base_model().get_output_embeddings()(hidden[:, :-1][where])
    return F.cross_entropy(logits, labels[:, 1:][where], reduction="sum")


def _backward(task: Tensor, z: Tensor, loss: LossSection, counts: Denominators) -> float:
    factors = factors_of(loss, counts)
    value = task * factors["task"] + representation_loss(z, loss, factors)[0]
    value.backward()
    return float(value.detach())


def _decoder(model: CausalModel) -> Callable[..., tuple[Tensor, ...]]:
    decoder = model.peft_model.get_base_model().get_decoder()
    return lambda **inputs: (decoder(**inputs).last_hidden_state,)


def _groups(triplets: Sequence[TripletTokens], size: int) -> list[Sequence[TripletTokens]]:
    return [triplets[i : i + size] for i in range(0, len(triplets), size)]
