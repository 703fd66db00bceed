"""Which nodes predict which labels, cut into chunks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from causal_core.trees.staging import each_tensor

# A prediction: the node (later the position) it is read from, the token, the triplet that it
# belongs to (its number in the list that was cut) and which of the triplet's injections.
Entry = tuple[int, int, int, int]

# Enough rows for a product with the output embeddings to be worth reading them.
LABELS_AT_ONCE = 128


@dataclass
class LabelGroup:
    """Next-token predictions of one kind, e.g. the answer tokens on the benign branch.

    `position` [m] indexes label positions, `target` [m] holds token ids, `owner` [m] the triplet
    (its number in the list that was cut) and `injection` [m] the injection that each prediction
    belongs to: its number within the chunk (see `LabelChunk.injection_owner`).
    """

    position: Tensor
    target: Tensor
    owner: Tensor
    injection: Tensor

    def __len__(self) -> int:
        return len(self.target)

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> LabelGroup:
        """From the entry of each prediction."""
        columns = torch.tensor(entries, dtype=torch.long).reshape(-1, 4)
        return cls(*columns.unbind(1))


@dataclass
class LabelChunk:
    """Some triplets' predictions; the groups' positions index `slots`."""

    slots: Tensor  # [c] long: of the batch's label positions
    groups: dict[str, LabelGroup]
    # [s] long: the triplet (numbered from 0 within the chunk) of each injection with predictions
    # here. What belongs to no injection counts as the triplet's first one's.
    injection_owner: Tensor

    def without_predictions(self) -> LabelChunk:
        """A chunk with the logits of one position and nothing to add to any sum or gradient."""
        groups = each_tensor(self.groups, lambda values: values[:0])
        return LabelChunk(self.slots[:1], groups, self.injection_owner[:0])


def cut_labels(
    entries: Mapping[str, Sequence[Entry]], at_once: int = LABELS_AT_ONCE
) -> list[LabelChunk]:
    """Chunks of at most `at_once` positions, a triplet's predictions together.

    A triplet with more is a chunk by itself: one term compares its predictions with each other.

    Args:
        entries: Of each prediction, by group.
    """
    by_owner: dict[int, list[tuple[str, int, int, int]]] = {}
    for name, group in entries.items():
        for position, target, owner, injection in group:
            by_owner.setdefault(owner, []).append((name, position, target, injection))
    chunks: list[LabelChunk] = []
    slots: dict[int, int] = {}
    parts: dict[str, list[Entry]] = {name: [] for name in entries}
    injections: dict[tuple[int, int], int] = {}  # (owner, its injection) -> number in the chunk

    def close() -> None:
        if slots:
            groups = {name: LabelGroup.of(part) for name, part in parts.items()}
            owners: dict[int, int] = {}
            seen = [owners.setdefault(owner, len(owners)) for owner, _ in injections]
            chunks.append(
                LabelChunk(
                    torch.tensor(list(slots), dtype=torch.long),
                    groups,
                    torch.tensor(seen, dtype=torch.long),
                )
            )
            slots.clear()
            injections.clear()
            for part in parts.values():
                part.clear()

    for owner, predictions in by_owner.items():
        new = {position for _, position, _, _ in predictions} - slots.keys()
        if len(slots) + len(new) > at_once:
            close()
        for name, position, target, injection in predictions:
            slot = slots.setdefault(position, len(slots))
            number = injections.setdefault((owner, injection), len(injections))
            parts[name].append((slot, target, owner, number))
    close()
    return chunks
