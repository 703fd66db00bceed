"""Vectors of whole prompts, clean and attacked, from the forward that would answer them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from causal_core.evaluation.guard import Prompts
from causal_core.model.causal_model import CausalModel
from causal_core.model.layout import packing_for
from causal_core.tokens.dataset import TripletDataset
from causal_core.tokens.triplet import TripletTokens
from causal_core.trees.needs import BENIGN, INJECTION, Needs
from causal_core.trees.packing import cut_micro_batches

HEAD, MEAN = "head", "mean"  # projected representations, and the mean last states before the head


@dataclass(frozen=True)
class Represented:
    """The prompts of a data set: each row's clean one, then one for each of its attacks."""

    vectors: dict[str, np.ndarray]  # by `HEAD` and `MEAN`: [n, H]
    attacked: np.ndarray
    row: np.ndarray
    tokens: np.ndarray
    texts: list[str]

    def seen_as(self, features: np.ndarray) -> Prompts:
        """The same prompts under other features."""
        return Prompts(features, self.attacked, self.row, self.tokens)


@torch.no_grad()
def represent(
    model: CausalModel, dataset: TripletDataset, device: torch.device, budget: int
) -> Represented:
    """One forward over the trees of all prompts.

    Args:
        budget: Nodes of one forward; a larger row gets its own.
    """
    was_training = model.training
    model.eval()
    rows = [dataset.tokens(index) for index in range(len(dataset))]
    starts = np.cumsum([0, *(1 + len(row.injections) for row in rows)])
    width = model.projection.input.in_features
    vectors = {kind: np.zeros((int(starts[-1]), width)) for kind in (HEAD, MEAN)}
    needs = Needs((BENIGN, INJECTION), ())
    room = max([budget, *(row.size_bound() for row in rows)])
    for micro in cut_micro_batches(rows, needs, room, packing_for(model, device)):
        batch = micro.batch.to(device)
        output = model(batch)
        places = {BENIGN: [int(starts[owner]) for owner in micro.owners], INJECTION: []}
        met: Counter[int] = Counter()
        for position in batch.injection_owner.tolist():  # those of a row in its order
            owner = micro.owners[position]
            met[owner] += 1
            places[INJECTION].append(int(starts[owner]) + met[owner])
        for branch, at in places.items():
            if (index := batch.branch_index.get(branch)) is not None:
                vectors[HEAD][at] = output.z[index].cpu().numpy()
                vectors[MEAN][at] = output.pooled[index].cpu().numpy()
    model.train(was_training)
    return Represented(vectors, *_described(dataset, rows))


def _described(
    dataset: TripletDataset, rows: Sequence[TripletTokens]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    attacked, of, tokens, texts = [], [], [], []
    for index, row in enumerate(rows):
        triplet = dataset.triplet(index)
        inputs = [triplet.benign_input, *(i.injection_input for i in triplet.injections)]
        prompts = [row.benign, *(i.prompt for i in row.injections)]
        for number, (text, prompt) in enumerate(zip(inputs, prompts, strict=True)):
            attacked.append(number > 0)
            of.append(index)
            tokens.append(len(row.system) + len(prompt))
            texts.append(text)
    return np.array(attacked), np.array(of), np.array(tokens), texts
