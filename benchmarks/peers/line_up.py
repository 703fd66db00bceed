"""Who takes part in what, and how many sequences each takes in a forward."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.peers import dpo, grouper, sft, whole
from benchmarks.peers.contender import Contender, at_a_time
from benchmarks.peers.models import LORA, demo_base, our_model
from benchmarks.peers.objectives import PREFERENCE, SFT, Objective
from benchmarks.peers.ours import ours
from causal_core.config import ModelSection
from causal_core.device import device_memory_bytes
from causal_core.model.causal_model import CausalModel
from causal_core.pretrained.loading import load_tokenizer

log = logging.getLogger(__name__)


@dataclass
class LineUp:
    """Our model, and peers with the same weights, made for one objective at a time."""

    model: CausalModel
    tokenizer: Any
    directory: str

    @classmethod
    def load(cls, directory: str) -> LineUp:
        return cls(our_model(), load_tokenizer(ModelSection()), directory)

    def ours(self, objective: Objective) -> Contender:
        return ours(self.model, objective)

    @contextmanager
    def peers(self, objective: Objective) -> Iterator[list[Contender]]:
        """Those that an objective can be asked of."""
        found = list(self._peers(objective))
        yield found
        found.clear()  # a model each

    def _peers(self, objective: Objective) -> Iterator[Contender]:
        lengths = [len(prompt) + len(answer) for prompt, answer in objective.sequences()]
        longest, rows = max(lengths), objective.rows
        row_tokens = longest * (len(lengths) // len(rows))
        if objective.name == PREFERENCE:
            pairs = sum(len(row.injections) for row in rows)
            batch = at_a_time(pairs, 2 * longest)
            yield dpo.preference_trainer(
                self.model, demo_base(), self.tokenizer, objective, batch, self.directory, LORA
            )
            return
        if objective.name == SFT:
            batch = at_a_time(len(lengths), -(-sum(lengths) // len(lengths)))  # it pads nothing
            yield sft.padding_free(
                self.model, demo_base(), self.tokenizer, objective, batch, self.directory, LORA
            )
            if grouper.applies(rows):
                batch = at_a_time(len(rows), row_tokens)
                yield grouper.grouped(self.model, demo_base(), objective, batch, LORA)
                return
        if whole.fits(row_tokens, device_memory_bytes(torch.device("cpu"))):
            batch = at_a_time(len(rows), row_tokens)
            yield whole.subclassed(self.model, demo_base(), objective, batch, self.directory, LORA)
        else:
            log.warning(
                "%s is left out: a row of %s tokens, all in one graph, takes more memory than is "
                "free here", whole.TITLE, f"{row_tokens:,}",
            )  # fmt: skip
