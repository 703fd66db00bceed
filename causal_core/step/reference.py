"""What the model without its adapter says of rows that come again: computed once, then known.

A value must not depend on when it was computed, or a resumed run would not be the run that was
not interrupted: a row in another micro-batch is rounded otherwise. So each row's values are those
of its own tree, whatever else is in the micro-batch, and a run that goes on without them computes
the same bits again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import torch

from causal_core.loss.label_loss import KnownReference, log_p
from causal_core.loss.objective import reference_hidden
from causal_core.model.causal_model import CausalModel
from causal_core.tokens.triplet import TripletTokens
from causal_core.trees.needs import BENIGN, Needs
from causal_core.trees.packing import Packing, cut_micro_batches, predictions, tree_nodes

MOST_ROWS = 200_000  # that are kept, about a quarter of a kilobyte each; others are computed again


class KnownRows:
    """Log-probabilities without the adapter of the targets in some label groups, by row.

    The base must not change while it lives: nothing else is looked at but a row's tokens.
    """

    def __init__(
        self,
        model: CausalModel,
        groups: tuple[str, ...],
        packing: Packing,
        device: torch.device,
    ) -> None:
        self._model, self._packing, self._device = model, packing, device
        self._needs = Needs((BENIGN,), groups)
        self._known: dict[bytes, bytes] = {}
        double = any(p.dtype == torch.float64 for p in model.parameters())
        self._type = np.float64 if double else np.float32  # as `log_p` has it

    def of(self, rows: Mapping[int, TripletTokens]) -> KnownReference:
        """Of a micro-batch's rows, by the number that they have as owners of its labels."""
        groups = self._needs.groups
        known = [self._row(row) for row in rows.values()]
        counts = [[predictions(row, group) for group in groups] for row in rows.values()]
        parts = [
            np.split(row, np.cumsum(count)[:-1]) for row, count in zip(known, counts, strict=True)
        ]
        values, first = {}, {}
        for number, group in enumerate(groups):
            of_group = [part[number] for part in parts]
            begins = np.zeros(max(rows) + 1, dtype=np.int64)
            begins[list(rows)] = np.cumsum([0, *(len(part) for part in of_group[:-1])])
            values[group] = torch.from_numpy(np.concatenate(of_group)).to(self._device)
            first[group] = torch.from_numpy(begins).to(self._device)
        return KnownReference(values, first)

    def _row(self, triplet: TripletTokens) -> np.ndarray:
        """A row's values, those of each group after another's."""
        key = _digest(triplet)
        known = self._known.get(key)
        if known is not None:
            return np.frombuffer(bytearray(known), dtype=self._type)
        values = self._computed(triplet)
        if len(self._known) < MOST_ROWS:
            self._known[key] = values.tobytes()
        return values

    @torch.no_grad()
    def _computed(self, triplet: TripletTokens) -> np.ndarray:
        groups = self._needs.groups
        if not any(predictions(triplet, group) for group in groups):
            return np.empty(0, dtype=self._type)
        room = tree_nodes(triplet, self._needs)
        (micro,) = cut_micro_batches([triplet], self._needs, room, self._packing)
        batch = micro.batch.to(self._device)
        hidden_nH = reference_hidden(self._model, batch)
        (chunk,) = batch.labels  # a triplet's predictions are never parted
        log_p_cV = log_p(self._model.logits(hidden_nH.index_select(0, chunk.slots)))
        found = [chunk.groups[group] for group in groups]
        values = torch.cat([log_p_cV[own.position, own.target] for own in found])
        return values.cpu().numpy()


def _digest(triplet: TripletTokens) -> bytes:
    """Of all tokens that the values depend on: two rows may have one id."""
    spans = [triplet.system, triplet.benign]
    for injection in triplet.injections:
        spans += [injection.prompt, injection.answer, injection.attack_answer]
    lengths = np.array([len(span) for span in spans], dtype=np.int64)
    tokens = np.concatenate([np.asarray(span, dtype=np.int64) for span in spans])
    return hashlib.blake2b(lengths.tobytes() + tokens.tobytes(), digest_size=16).digest()
