"""TRL's `DPOTrainer` as published: the safe answer over what the attack wants."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from benchmarks.peers.contender import Trained, one_step
from benchmarks.peers.models import copy_adapter, lora_config
from benchmarks.peers.objectives import Objective
from causal_core.config import LoraSection
from causal_core.model.causal_model import CausalModel

TITLE = "TRL DPOTrainer"


def preference_trainer(
    ours: CausalModel,
    base: Any,
    tokenizer: Any,
    objective: Objective,
    batch: int,
    directory: str,
    lora: LoraSection,
) -> Trained:
    """The trainer on the same pairs, given to it as texts; `batch` pairs in a forward.

    Raises:
        ValueError: it makes other tokens of the texts.
    """
    pairs = [
        (row.system + injection.prompt, injection.answer, injection.attack_answer)
        for row in objective.rows
        for injection in row.injections
    ]
    names = ("prompt", "chosen", "rejected")
    texts = [
        {name: tokenizer.decode(ids) for name, ids in zip(names, pair, strict=True)}
        for pair in pairs
    ]
    trainer = DPOTrainer(
        model=base,
        args=DPOConfig(
            output_dir=directory,
            beta=objective.loss.beta,
            max_length=None,
            **one_step(len(pairs), batch),
        ),
        train_dataset=Dataset.from_list(texts),
        processing_class=tokenizer,
        peft_config=lora_config(base, lora),
    )
    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    found = [tuple(row[column] for column in columns) for row in trainer.train_dataset]
    if found != pairs:
        raise ValueError("DPOTrainer makes other tokens of the texts: the two are not comparable")
    copy_adapter(ours, trainer.model)
    return Trained(TITLE, trainer, batch)
