"""Which nodes predict which labels, cut into chunks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
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
