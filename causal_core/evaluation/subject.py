"""The models of one evaluation, and how they are had in memory: as few bases as there are."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from causal_core.checkpoints.adapter import load_adapter, read_adapter, with_fresh_adapter
from causal_core.checkpoints.checkpoint import load_weights
from causal_core.config import Config
from causal_core.config_file import parse_config
from causal_core.config_sections import Matmul
from causal_core.device import device_memory_bytes, freed_memory_stays
from causal_core.files import cache_root
from causal_core.model import matmul
from causal_core.model.causal_model import CausalModel, build_model
from causal_core.model.device_costs import measurements_of, takes_bfloat16
from causal_core.pretrained.loading import load_base

_MEMORY_OVER_COPIES = 8  # free memory over what rounded weights take, for them to be kept


@dataclass(frozen=True)
class Subject:
    """One model to evaluate: a base, or a base with what was trained on it.

    Its config says which base and which adapter, and which data: with another tokenizer, the same
    texts are other tokens.
    """

    name: str
    config: Config
    checkpoint: Path | None = None  # of a run: adapter and head
    adapter: Path | None = None  # a PEFT adapter alone
    head_trained: bool = False
    description: str = ""

    @property
    def is_base(self) -> bool:
        return self.checkpoint is None and self.adapter is None

    def to_plain(self) -> dict[str, Any]:
        """Plain values, for a worker."""
        return {
            "name": self.name,
            "config": self.config.model_dump(mode="json"),
            "checkpoint": None if self.checkpoint is None else str(self.checkpoint),
            "adapter": None if self.adapter is None else str(self.adapter),
            "head_trained": self.head_trained,
            "description": self.description,
        }

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Subject:
        paths = {k: Path(values[k]) for k in ("checkpoint", "adapter") if values[k] is not None}
        return cls(**{**values, "config": parse_config(values["config"]), **paths})


def in_memory(
    subjects: Sequence[Subject], device: torch.device, asked: Matmul = "float32"
) -> Iterator[tuple[Subject, CausalModel]]:
    """Each subject with its model, which is good until the next one; whoever holds on to it keeps
    its base in memory beside the next.

    A fresh adapter changes nothing (B is zero): the base itself comes first in its group, and the
    weights of the others are then loaded into that adapter.

    Args:
        asked: In which type float32 models multiply (`evaluation.matmul`): all in the same, which
            the first base decides, and no longer than this goes on.
    """
    bfloat16: bool | None = None
    try:
        with freed_memory_stays(device):
            for group in grouped(subjects):
                model = _fresh_model(group, device)
                cache = cache_root(group[-1].config.data.cache_dir)
                measured = measurements_of(model, device, cache, bfloat16=asked != "float32")
                if bfloat16 is None:
                    speed = measured.bfloat16_speed
                    bfloat16 = takes_bfloat16(asked, speed, "evaluation.matmul")
                _use_products(model, measured.products, bfloat16)
                for subject in group:
                    if subject.checkpoint is not None:
                        load_weights(subject.checkpoint, model)
                    elif subject.adapter is not None:
                        load_adapter(read_adapter(subject.adapter), model)
                    yield subject, model
                del model
                gc.collect()  # adapted layers refer to themselves; no base stays beside the next
    finally:
        matmul.use(matmul.in_use())


def _use_products(model: CausalModel, library: matmul.Library, bfloat16: bool) -> None:
    """Rounded weights are kept where they are little beside the memory that is free."""
    copies = False
    if bfloat16:
        size = matmul.round_layers(model.peft_model.get_base_model().get_decoder())
        copies = size * _MEMORY_OVER_COPIES <= device_memory_bytes(torch.device("cpu"))
    matmul.use(library, bfloat16, copies)


def grouped(subjects: Sequence[Subject]) -> list[list[Subject]]:
    """Subjects that one load of a base serves."""
    groups: list[list[Subject]] = []
    for subject in sorted(subjects, key=lambda s: s.is_base):  # a base joins whom it can
        of = next((g for g in groups if _share(g[0], subject)), None)
        if of is None:
            groups.append([subject])
        else:
            of.append(subject)
    return [sorted(group, key=lambda s: not s.is_base) for group in groups]


def _share(one: Subject, other: Subject) -> bool:
    if one.config.model != other.config.model:
        return False
    same_room = (
        one.adapter == other.adapter and one.config.lora.shape() == other.config.lora.shape()
    )
    return one.is_base or other.is_base or same_room


def _fresh_model(group: Sequence[Subject], device: torch.device) -> CausalModel:
    trained = group[-1]
    adapter = None if trained.adapter is None else read_adapter(trained.adapter)
    config = trained.config
    base = load_base(config.model, device, config.data.cache_dir)
    if adapter is None:
        return build_model(base, config.lora, config.run.seed)
    return with_fresh_adapter(base, adapter, config.run.seed)
