"""TRL's `SFTTrainer(padding_free=True)`, unmodified, on benign and attacked answers."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from benchmarks.peers.contender import Trained, one_step
from benchmarks.peers.models import copy_adapter, lora_config
from benchmarks.peers.objectives import Objective
from causal_core.config import LoraSection
from causal_core.model.causal_model import CausalModel

IGNORED = -100
TITLE = "TRL SFTTrainer, padding_free"


def padding_free(
    ours: CausalModel,
    base: Any,
    tokenizer: Any,
    objective: Objective,
    batch: int,
    directory: str,
    lora: LoraSection,
) -> Trained:
    """The trainer on the same tokens and weights; `batch` sequences in a forward."""
    sequences = objective.sequences()
    rows = [
        {"input_ids": prompt + answer, "labels": [IGNORED] * len(prompt) + answer}
        for prompt, answer in sequences
    ]
    trainer = SFTTrainer(
        model=base,
        args=SFTConfig(
            output_dir=directory,
            padding_free=True,
            max_length=None,
            **one_step(len(rows), batch),
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora_config(base, lora),
    )
    copy_adapter(ours, trainer.model)
    return Trained(TITLE, trainer, batch)
