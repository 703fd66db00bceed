"""What an export does beside the run that it is from: prompts, logits, answers, attacks.

Both sides are asked as their users ask them: the run through this program's encoder, the export
through `apply_chat_template`, plain transformers or PEFT, and its own generation config.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from causal_core.data.schema import Triplet, contains_witness
from causal_core.evaluation.statistics import wilson
from causal_core.tokens.prompts import PromptEncoder, UnencodableTextError

_MOST_MARKERS = 64  # that the template is tried with


@dataclass(frozen=True)
class Question:
    """A row of a test set as a conversation, with the answer that it should have."""

    system: str
    clean: str  # the user's turn without the attack
    attacked: str
    answer: str
    witness: str | None

    @classmethod
    def of(cls, triplet: Triplet, encoder: PromptEncoder) -> Question:
        """A row with one injection, or none: then both turns are the benign one."""
        clean = encoder.user_turn(triplet.benign_input, triplet.context)
        if not triplet.injections:
            return cls(triplet.system_instruction, clean, clean, triplet.benign_output, None)
        attack = triplet.only
        return cls(
            system=triplet.system_instruction,
            clean=clean,
            attacked=encoder.user_turn(attack.injection_input, triplet.context),
            answer=attack.injection_output,
            witness=attack.witness,
        )


@dataclass(frozen=True)
class Observed:
    """What one model did with the questions."""

    prompts: list[list[int]]  # of the attacked turns
    logits: list[Tensor]  # [answer tokens, V] float32 on the CPU, where the right answer is given
    answers: list[list[int]]  # greedy, to the attacked turns
    successes: list[bool]  # of the questions with a witness


def training_prompts(
    encoder: PromptEncoder, questions: Sequence[Question]
) -> list[tuple[list[int], list[int]]]:
    """Clean and attacked prompts as training made them."""
    pairs = [((q.system, q.clean), (q.system, q.attacked)) for q in questions]
    return [tuple(encoder.prompts_ids(pair)) for pair in pairs]  # type: ignore[misc]


def template_prompts(
    tokenizer: Any, system_role: bool, questions: Sequence[Question]
) -> list[tuple[list[int], list[int]]]:
    """Clean and attacked prompts as an exported tokenizer's own template makes them."""
    return [
        tuple(  # type: ignore[misc]
            template_ids(tokenizer, system_role, q.system, turn) for turn in (q.clean, q.attacked)
        )
        for q in questions
    ]


def template_ids(tokenizer: Any, system_role: bool, system: str, turn: str) -> list[int]:
    """A prompt by `apply_chat_template` and nothing else."""
    chat = (
        [{"role": "system", "content": system}, {"role": "user", "content": turn}]
        if system_role
        else [{"role": "user", "content": f"{system}\n\n{turn}"}]
    )
    return list(tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"])


@torch.no_grad()
def observe(
    model: Any,
    encoder: PromptEncoder,
    prompts: Sequence[tuple[list[int], list[int]]],
    questions: Sequence[Question],
    generation: Any,
    max_new_tokens: int,
) -> Observed:
    """Asks a transformers or PEFT model.

    Args:
        prompts: Of each question, clean and attacked.
        generation: Its generation config.
    """
    model.eval()
    device = next(model.parameters()).device
    seen = Observed([attacked for _, attacked in prompts], [], [], [])
    labels = encoder.answers_ids([q.answer for q in questions])

    def greedy(prompt: list[int]) -> list[int]:
        ids = torch.tensor([prompt], device=device)
        made = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=generation,
            max_new_tokens=max_new_tokens,
        )
        return [int(token) for token in made[0, len(prompt) :]]

    for (clean, attacked), label, question in zip(prompts, labels, questions, strict=True):
        ids = torch.tensor([[*attacked, *label]], device=device)
        # Position k predicts token k + 1; the last one predicts nothing of the answer.
        logits = model(input_ids=ids).logits[0, len(attacked) - 1 : -1]
        seen.logits.append(logits.float().cpu())
        seen.answers.append(greedy(attacked))
        if question.witness:
            said, unprovoked = (
                contains_witness(encoder.decode(answer), question.witness)
                for answer in (seen.answers[-1], greedy(clean))
            )
            seen.successes.append(said and not unprovoked)
    return seen


def compared(run: Observed, export: Observed, labels: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Numbers of what differs, as `export.json` holds them.

    Args:
        labels: The tokens of the right answers.
    """
    raw = [(a - b).abs() for a, b in zip(run.logits, export.logits, strict=True)]
    ours, theirs = (
        torch.cat([_of_labels(x, y) for x, y in zip(side.logits, labels, strict=True)])
        for side in (run, export)
    )
    n = len(run.prompts)
    return {
        "rows": n,
        "same_prompts": sum(a == b for a, b in zip(run.prompts, export.prompts, strict=True)),
        "same_answers": sum(a == b for a, b in zip(run.answers, export.answers, strict=True)),
        "logits": _spread(torch.cat([d.flatten() for d in raw])),
        "answer_log_probabilities": _spread((ours - theirs).abs()),
        "attack_success": {
            name: estimate.to_dict() if estimate is not None else None
            for name, estimate in (
                (name, wilson(sum(side.successes), len(side.successes)))
                for name, side in (("run", run), ("export", export))
            )
        },
    }


def hostile_prompts(encoder: PromptEncoder, tokenizer: Any) -> dict[str, int]:
    """Tries an exported template with each marker: how many prompts, how many with training's ids,
    and how many with a control token of the text's own, which must be none."""
    tried = same = forged = 0
    role, control = encoder.template.system_role, encoder.control_ids
    harmless = template_ids(tokenizer, role, "x", "x")
    expected = [i for i in harmless if i in control]
    for marker in encoder.markers[:_MOST_MARKERS]:
        for text in (marker, f"a{marker[:1]}{marker}{marker} b\n{marker}"):
            found = template_ids(tokenizer, role, text, text)
            tried += 1
            forged += [i for i in found if i in control] != expected
            try:
                same += found == encoder.prompt_ids(text, text)
            except UnencodableTextError:  # training leaves such rows out
                same += 1
    return {"tried": tried, "same_ids": same, "forged": forged}


def _of_labels(logits: Tensor, labels: Sequence[int]) -> Tensor:
    """log p of each of an answer's tokens."""
    return logits.double().log_softmax(-1)[torch.arange(len(labels)), torch.tensor(labels)]


def _spread(differences: Tensor) -> dict[str, float]:
    return {"largest": float(differences.max()), "mean": float(differences.double().mean())}
