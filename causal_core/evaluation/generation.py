"""Greedy answers for many prompts: left-padded batches of similar length, nothing sampled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from causal_core.model.causal_model import CausalModel


@torch.no_grad()
def greedy_answers(
    model: CausalModel,
    prompts: Sequence[Sequence[int]],
    *,
    end_of_answer: int,
    max_new_tokens: int,
    batch_tokens: int,
    device: torch.device,
    progress: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """The most likely continuation of each prompt, token by token.

    It ends at `end_of_answer` or at the model's own end token.

    Args:
        prompts: Token ids of whole prompts.
        batch_tokens: Padded prompt tokens of one batch.
        progress: Called with the number of prompts done after each batch.

    Returns:
        New tokens per prompt without the end token, in the order of `prompts`.
    """
    from transformers import GenerationConfig

    was_training = model.training
    model.eval()
    base: Any = model.peft_model.get_base_model()
    ends = end_tokens(base, end_of_answer)
    # The model's own settings are replaced, not only overridden: what is unset here would be taken
    # from them, and a repetition penalty, say, is not greedy decoding.
    base.generation_config = GenerationConfig(eos_token_id=sorted(ends))
    greedy = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        eos_token_id=sorted(ends),
        pad_token_id=end_of_answer,
    )
    answers: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    while order:
        width = len(prompts[order[0]])
        size = max(1, batch_tokens // width)
        chosen, order = order[:size], order[size:]
        # Any token may pad: it is masked out and never read.
        ids = torch.full((len(chosen), width), end_of_answer, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, index in enumerate(chosen):
            length = len(prompts[index])
            ids[row, width - length :] = torch.tensor(prompts[index])
            mask[row, width - length :] = 1
        output = base.generate(
            input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=greedy
        )
        for row, index in enumerate(chosen):
            new = output[row, width:].tolist()
            end = next((k for k, token in enumerate(new) if token in ends), len(new))
            answers[index] = new[:end]
        if progress is not None:
            progress(len(chosen))
    model.train(was_training)
    return answers


def end_tokens(base: Any, end_of_answer: int) -> set[int]:
    """The tokens that end an answer: the template's, and the model's own."""
    own = base.generation_config.eos_token_id
    return {end_of_answer, *(own if isinstance(own, list) else [own])} - {None}
