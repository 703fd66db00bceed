"""Before a run: is the model that will be trained the model that will be served?

Real rows go through the prefix tree, and one sequence of each through the model's own plain
forward: the library's attention and masks, none of this project's layers. What nobody thought of,
an option of a new architecture or of a new version of the library, shows here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from causal_core.device import at_least_float32
from causal_core.errors import ModelError
from causal_core.model import matmul
from causal_core.model.causal_model import CausalModel
from causal_core.model.layout import packing_for
from causal_core.tokens.triplet import TripletTokens
from causal_core.trees.needs import BENIGN, INJECTION, ROBUST, TASK, Needs
from causal_core.trees.packing import cut_micro_batches, tree_nodes

log = logging.getLogger(__name__)

_NEEDS = Needs((BENIGN, INJECTION), (TASK, ROBUST))


@dataclass
class _Branch:
    """One sequence's results, by either way; float32 at least."""

    log_p: Tensor  # [labels]
    spread: Tensor  # [labels]: standard deviation of the logits that each comes from
    pooled: Tensor  # [H]: mean last hidden state over the prompt


@torch.no_grad()
def check_against_own_forward(
    model: CausalModel, triplets: Sequence[TripletTokens], device: torch.device
) -> None:
    """Compares log-probabilities of labels and pooled hidden states of some rows.

    With the adapter as it is and without dropout. Rounding may take half of the digits of the type
    that is computed in: of a pooled state by its length, of log-probabilities by the spread of the
    two logits that they are the difference of. A 4-bit base is the same numbers either way; beside
    products in bfloat16 the plain forward stays in float32, and theirs are the digits.

    Args:
        triplets: A few, with one injection each or none, and the longest sequences among them:
            windows and the like show there.

    Raises:
        ModelError: they differ beyond rounding; with both numbers.
    """
    base = model.peft_model.get_base_model()
    if next(base.parameters()).device.type != device.type:
        log.info("no self-test of the model: its weights are not whole on this device")
        return
    was_training = model.training
    model.eval()
    try:
        trees, dtype = _by_trees(model, triplets, device)
        with _own_forward(base):
            pairs = [
                (trees[index, branch], _alone(base, *_sequence(triplets[index], branch), device))
                for index, branch in _compared(triplets)
            ]
        _compare(base, triplets, pairs, dtype)
    finally:
        model.train(was_training)


def _compared(triplets: Sequence[TripletTokens]) -> list[tuple[int, str]]:
    """A branch of each triplet by its index: half of the work of all, and both kinds are seen.

    Of the longest triplet it is the injection: its branch comes behind the other one, where places
    in the row and on the path differ most.
    """
    lengths = [tree_nodes(triplet, _NEEDS) for triplet in triplets]
    order = sorted(range(len(triplets)), key=lambda index: -lengths[index])
    return [
        (index, INJECTION if place % 2 == 0 and triplets[index].injections else BENIGN)
        for place, index in enumerate(order)
    ]


def _sequence(triplet: TripletTokens, branch: str) -> tuple[list[int], list[int]]:
    """Prompt and labels of a branch."""
    if branch == BENIGN:
        return [*triplet.system, *triplet.benign], list(triplet.benign_answer)
    return [*triplet.system, *triplet.only.prompt], list(triplet.only.answer)


def _by_trees(
    model: CausalModel, triplets: Sequence[TripletTokens], device: torch.device
) -> tuple[dict[tuple[int, str], _Branch], torch.dtype]:
    """By triplet and branch, and the type that was computed in."""
    found: dict[tuple[int, str], _Branch] = {}
    labelled: dict[tuple[int, str], list[tuple[Tensor, Tensor]]] = {}
    dtype = torch.float32
    budget = sum(tree_nodes(triplet, _NEEDS) for triplet in triplets)
    for micro in cut_micro_batches(triplets, _NEEDS, budget, packing_for(model, device)):
        batch = micro.batch.to(device)
        output = model(batch)
        dtype = torch.bfloat16 if matmul.in_bfloat16() else output.label_hidden.dtype
        for chunk in batch.labels:
            logits = model.logits(output.label_hidden[chunk.slots])
            for name, branch in ((TASK, BENIGN), (ROBUST, INJECTION)):
                group = chunk.groups[name]
                log_p, spread = _log_p(logits[group.position], group.target)
                for owner in group.owner.unique().tolist():
                    of = group.owner == owner
                    labelled.setdefault((owner, branch), []).append((log_p[of], spread[of]))
        for branch, index in batch.branch_index.items():
            owners = [micro.owners[i] for i in batch.injection_owner.tolist()]
            vectors = zip(
                owners if branch == INJECTION else micro.owners, output.pooled[index], strict=True
            )
            for owner, vector in vectors:
                empty = vector.new_empty(0)
                parts = labelled.get((owner, branch), [(empty, empty)])
                log_p, spread = (torch.cat(part) for part in zip(*parts, strict=True))
                found[owner, branch] = _Branch(log_p, spread, vector)
    return found, dtype


def _alone(base: Any, prompt: list[int], labels: list[int], device: torch.device) -> _Branch:
    """The same by one forward of one sequence."""
    kept: list[Tensor] = []
    hook = base.get_decoder().register_forward_hook(
        lambda _module, _inputs, output: kept.append(output.last_hidden_state)
    )
    try:
        ids = torch.tensor([[*prompt, *labels[:-1]]], device=device)
        logits = base(input_ids=ids, use_cache=False, logits_to_keep=max(1, len(labels))).logits[0]
    finally:
        hook.remove()
    target = torch.tensor(labels, dtype=torch.long, device=device)
    pooled = at_least_float32(kept[0][0, : len(prompt)]).mean(0)
    return _Branch(*_log_p(logits[: len(labels)], target), pooled)


def _log_p(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities [m] of the targets, and the spread [m] of their logits."""
    wide = at_least_float32(logits)
    return wide.gather(1, target[:, None])[:, 0] - wide.logsumexp(-1), wide.std(-1)


def _compare(
    base: Any,
    triplets: Sequence[TripletTokens],
    pairs: Sequence[tuple[_Branch, _Branch]],
    dtype: torch.dtype,
) -> None:
    bound = torch.finfo(dtype).eps ** 0.5
    log_p, own_log_p, spread = (
        torch.cat(values)
        for values in zip(*((a.log_p, b.log_p, b.spread) for a, b in pairs), strict=True)
    )
    apart, allowed = float((log_p - own_log_p).abs().mean()), 2.0 * bound * float(spread.mean())
    pooled = [float((tree.pooled - own.pooled).norm() / own.pooled.norm()) for tree, own in pairs]
    # What is no number is not within a bound either.
    if apart <= allowed and all(value <= bound for value in pooled):
        return
    worst = next((value for value in pooled if not value <= bound), max(pooled))
    raise ModelError(
        f"{type(base).__name__} would be trained as another model than the one that is served. "
        f"Over {len(triplets)} triplets, {triplets[0].id!r} among them, answer tokens have a mean "
        f"log-probability of {float(log_p.mean()):.6g} by prefix trees and "
        f"{float(own_log_p.mean()):.6g} by the model's own forward: {apart:.2g} apart, of which "
        f"rounding in {str(dtype).removeprefix('torch.')} explains {allowed:.2g}; pooled hidden "
        f"states are {worst:.2g} apart ({bound:.2g}). Use one of the architectures "
        "in docs/models.md"
    )


@contextmanager
def _own_forward(base: Any) -> Iterator[None]:
    """The model without this project's attention and layers."""
    attention = base.config._attn_implementation
    replaced: list[tuple[nn.Module, Any]] = []
    for module in base.modules():
        forward = module.__dict__.get("forward")
        ours = isinstance(forward, MethodType) and forward.__func__.__module__.startswith(
            __name__.partition(".")[0] + "."
        )
        if ours:
            replaced.append((module, module.__dict__.pop("forward")))
    base.set_attn_implementation("sdpa" if base._supports_sdpa else "eager")
    try:
        yield
    finally:
        base.set_attn_implementation(attention)
        for module, forward in replaced:
            module.forward = forward
