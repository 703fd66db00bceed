"""A model's own answers as targets: for rows without an answer, and resumable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from causal_core.config import Config
from causal_core.data.rules import check_row
from causal_core.data.schema import Triplet
from causal_core.device import prepare_device
from causal_core.evaluation.generation import greedy_answers
from causal_core.evaluation.subject import Subject, in_memory
from causal_core.files import read_small, write_whole, writes_to
from causal_core.pretrained.loading import base_fingerprint, resolve_model
from causal_core.tokens.prompts import PromptEncoder
from causal_core.tokens.run_data import load_encoder

_AT_ONCE = 128  # rows between two entries in the file of answers
_MOST_BYTES = 2**32
Prompt = tuple[str, str]  # S and the user turn


@dataclass(frozen=True)
class Answered:
    """Rows with all of their answers, and those that were left out with the reason."""

    rows: list[Triplet]
    dropped: list[tuple[str, str]]  # id, reason
    written: int  # answers by the model


def is_unanswered(row: Triplet) -> bool:
    """Whether an answer of the row is missing: the benign one, or a safe one."""
    return not row.benign_output or any(not i.injection_output for i in row.injections)


def own_answers(
    rows: Sequence[Triplet],
    config: Config,
    subject: Subject,
    kept: Path,
    max_new_tokens: int,
    progress: Callable[[int, int], None],
) -> dict[Prompt, str | None]:
    """The model's greedy answer to each prompt of rows without one.

    None where it does not end within `max_new_tokens`, or is empty.

    Args:
        kept: Answers so far, a line each: an interrupted call goes on from there.
        progress: Called with prompts done and prompts in all.
    """
    import torch

    device = torch.device("cuda" if config.resources.gpus_per_worker else "cpu")
    prepare_device(device, config.resources.threads, config.resources.gpus_per_worker)
    ((subject, model),) = in_memory([subject], device)
    encoder = load_encoder(subject.config)
    wanted = sorted({_prompt(encoder, row) for row in rows if is_unanswered(row)})
    key = _key(subject, model, encoder, max_new_tokens)
    answers = {p: a for p, a in _read(kept, key).items() if p in set(wanted)}
    left = [prompt for prompt in wanted if prompt not in answers]
    entries = [{"key": key}, *([*prompt, answer] for prompt, answer in answers.items())]
    with writes_to(kept, "OUT"):
        write_whole(kept, "".join(json.dumps(entry) + "\n" for entry in entries))
    with kept.open("a", encoding="utf-8") as file:
        for start in range(0, len(left), _AT_ONCE):
            progress(len(answers), len(wanted))
            chunk = left[start : start + _AT_ONCE]
            generated = greedy_answers(
                model,
                encoder.prompts_ids(chunk),
                end_of_answer=encoder.end_of_answer,
                max_new_tokens=max_new_tokens,
                batch_tokens=config.evaluation.batch_tokens,
                device=device,
            )
            for prompt, ids in zip(chunk, generated, strict=True):
                text = encoder.decode(ids).strip()
                answers[prompt] = text if text and len(ids) < max_new_tokens else None
                file.write(json.dumps([*prompt, answers[prompt]]) + "\n")
            file.flush()
    progress(len(answers), len(wanted))
    return answers


def with_answers(
    rows: Sequence[Triplet], answers: Mapping[Prompt, str | None], encoder: PromptEncoder
) -> Answered:
    """Rows whose missing answers are the model's; an answer that is there stays.

    A row is left out where the model has no answer that ends, or none that its attacks can be told
    from (a witness that it says unasked).
    """
    full: list[Triplet] = []
    dropped: list[tuple[str, str]] = []
    written = 0
    for row in rows:
        if not is_unanswered(row):
            full.append(row)
            continue
        own = row.benign_output or answers[_prompt(encoder, row)]
        if own is None:
            dropped.append((row.id, "the model's answer is empty, or does not end in time"))
            continue
        made = replace(
            row,
            benign_output=own,
            injections=tuple(
                replace(i, injection_output=i.injection_output or own) for i in row.injections
            ),
        )
        if errors := check_row(made.to_row(), row.id).errors:
            dropped.append((row.id, f"{errors[0][0]}: {errors[0][1]}"))
            continue
        written += 1
        full.append(made)
    return Answered(full, dropped, written)


def _prompt(encoder: PromptEncoder, row: Triplet) -> Prompt:
    return row.system_instruction, encoder.user_turn(row.benign_input, row.context)


def _key(subject: Subject, model: Any, encoder: PromptEncoder, max_new_tokens: int) -> str:
    """What answers depend on beside their prompt."""
    config = subject.config
    source = resolve_model(config.model, config.data.cache_dir)
    parts = [
        base_fingerprint(source, model.peft_model.get_base_model()),
        config.model.quantization,
        config.model.dtype,
        str(subject.adapter or subject.checkpoint),
        encoder.fingerprint(),
        max_new_tokens,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _read(kept: Path, key: str) -> dict[Prompt, str | None]:
    """Answers of an earlier call with the same key; a last line that was cut is left out."""
    try:
        lines = read_small(kept, _MOST_BYTES).decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    found: dict[Prompt, str | None] = {}
    for entry in _entries(lines[:1]):
        if entry != {"key": key}:
            return {}
    for entry in _entries(lines[1:]):
        if isinstance(entry, list) and len(entry) == 3:
            found[str(entry[0]), str(entry[1])] = None if entry[2] is None else str(entry[2])
    return found


def _entries(lines: Sequence[str]) -> Iterator[Any]:
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            return
