"""A tiny model on disk and a tiny run around it, so that whole runs take seconds on one core."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from causal_core.config import Config
from causal_core.config_file import parse_config
from causal_core.data.writer import to_table, write_triplets
from causal_core.generator.generate import generate_dataset

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}"
    "{% endif %}"
)


def tiny_tokenizer(
    chat_template: str = CHAT_TEMPLATE, extra: tuple[str, ...] = (), merges: int = 0
) -> Any:
    """A byte-level tokenizer: every byte one token, plus the control tokens.

    Args:
        merges: So many tokens more, learned from generated triplets: their texts have a quarter of
            the tokens then.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<|pad|>", "<|start|>", "<|end|>"]
    vocabulary = {token: i for i, token in enumerate([*specials, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if merges:
        trainer = trainers.BpeTrainer(
            vocab_size=len(vocabulary) + merges, special_tokens=specials,
            initial_alphabet=alphabet, show_progress=False,
        )  # fmt: skip
        tokenizer.train_from_iterator(_texts(), trainer)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        bos_token="<|start|>",
        eos_token="<|end|>",
    )
    if extra:
        wrapped.add_tokens(list(extra), special_tokens=False)
    wrapped.chat_template = chat_template
    return wrapped


def _texts() -> list[str]:
    triplets = generate_dataset({"train": 40}, seed=0)["train"]
    return [text for t in triplets for text in (t.system_instruction, t.benign_input)]


def write_tiny_model(directory: Path, hidden: int = 32) -> Path:
    """A Llama of two layers with the tiny tokenizer, in Hugging Face layout."""
    from tests.tiny import tiny_base

    tokenizer = tiny_tokenizer(merges=750)
    base = tiny_base(vocabulary=len(tokenizer), hidden=hidden)
    base.config.pad_token_id = tokenizer.pad_token_id
    base.generation_config.pad_token_id = tokenizer.pad_token_id
    base.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def write_tiny_data(directory: Path, sizes: dict[str, int], seed: int = 0) -> Path:
    """Generated triplets, one JSONL file a split."""
    directory.mkdir(parents=True, exist_ok=True)
    for split, triplets in generate_dataset(sizes, seed).items():
        write_triplets(to_table(triplets), directory / f"{split}.jsonl")
    return directory


def tiny_config(model: Path, data: Path, run: Path, **sections: dict[str, Any]) -> Config:
    """A run in this process over the tiny model; keyword arguments override by section."""
    tree: dict[str, dict[str, Any]] = {
        "run": {"dir": str(run)},
        "model": {"name_or_path": str(model)},
        "lora": {"rank": 2, "alpha": 4, "dropout": 0.1},
        "data": {
            "train": [str(data / "train.jsonl")],
            "validation": [str(data / "validation.jsonl")],
            "test": {
                "seen": [str(data / "test_seen.jsonl")],
                "novel": [str(data / "test_novel.jsonl")],
            },
            "cache_dir": str(data / "cache"),
        },
        "train": {"global_batch": 4, "micro_batch_tokens": 500, "epochs": 1},
        "checkpoint": {"every_steps": 2},
        "evaluation": {"max_new_tokens": 4},
        # Threads of a tiny product wait for each other longer than they compute.
        "resources": {"workers": 0, "threads": 1},
        "logging": {"trackers": []},
    }
    for name, values in sections.items():
        tree.setdefault(name, {}).update(values)
    return parse_config(tree)


def metric_lines(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl of a run."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
