"""Attacks that are composed anew in every epoch, in place of those of the file.

What row i is attacked with in an epoch is a pure function of (seed, epoch, i, j), so a run that is
resumed, on any number of workers, sees the same (invariants I3 and I4). Rows never become larger
than the largest of the file: what fits memory and positions before the first step fits in all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from random import Random

from causal_core.data.schema import Injection, Triplet, contains_witness
from causal_core.generator.compose import LEAK, PlainRow, canary_in, compose, slot_of, texts_digest
from causal_core.generator.vocabulary import TRAIN
from causal_core.tokens.dataset import TripletDataset
from causal_core.tokens.prompts import PromptEncoder
from causal_core.tokens.rows import token_rows, tokens_of
from causal_core.tokens.triplet import TripletTokens

_OTHERS = 256  # rows of the file, evenly through it, whose tasks attacks ask for
_ATTEMPTS = 8
# Primes: epochs and attacks of a row begin elsewhere in the round of families and payloads.
_NEXT_EPOCH, _NEXT_ATTACK = 2003, 1009


@dataclass(frozen=True)
class FreshAttacks:
    """As many attacks a row as the file has for it (a plain row stays plain)."""

    dataset: TripletDataset
    encoder: PromptEncoder
    seed: int

    def tokens(self, index: int, epoch: int) -> TripletTokens:
        """The token spans of a row in an epoch; as in the file where no attack fits."""
        row = self.dataset.triplet(index)
        for attempt in range(_ATTEMPTS if row.injections else 0):
            attacked = self._attacked(row, index, epoch, attempt)
            if attacked is None:
                continue
            (made,) = token_rows([attacked.to_row()], self.encoder)
            if made["size_bound"] <= self.largest and made["longest"] <= self._longest:
                return tokens_of(made)
        return self.dataset.tokens(index)

    def triplet(self, index: int, epoch: int) -> Triplet:
        """The texts of the first attempt at a row in an epoch."""
        row = self.dataset.triplet(index)
        return self._attacked(row, index, epoch, 0) or row

    def fingerprint(self) -> str:
        """Of the rows and of all that attacks are put together from."""
        parts = [self.dataset.fingerprint, texts_digest(), self.seed]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @cached_property
    def largest(self) -> int:
        """Tree nodes that no row exceeds (`TripletTokens.size_bound`)."""
        return int(self.dataset.size_bounds().max())

    @cached_property
    def _longest(self) -> int:
        return self.dataset.longest()

    @cached_property
    def _others(self) -> Sequence[PlainRow]:
        step = max(1, len(self.dataset) // _OTHERS)
        chosen = range(0, len(self.dataset), step)[:_OTHERS]
        return [_plain(self.dataset.triplet(index)) for index in chosen]

    def _attacked(self, row: Triplet, index: int, epoch: int, attempt: int) -> Triplet | None:
        injections: list[Injection] = []
        canary = canary_in(row.system_instruction)
        for number in range(len(row.injections)):
            rng = Random(f"{self.seed}/{epoch}/{index}/{number}/{attempt}")
            slot = slot_of(index + epoch * _NEXT_EPOCH + number * _NEXT_ATTACK, TRAIN)
            # Few rows have something to leak: those are asked for it as often as for all else.
            if canary is not None and rng.random() < 0.5:
                slot = replace(slot, payload=LEAK)
            found = compose(_plain(row), self._others, slot, TRAIN, rng, canary)
            if found is None or contains_witness(row.context or "", found.witness or ""):
                return None
            injections.append(found)
        return replace(row, injections=tuple(injections))


def _plain(row: Triplet) -> PlainRow:
    return PlainRow(row.system_instruction, row.benign_input, row.benign_output, row.task)
