"""transformers' `Trainer` with a subclassed loss: the whole objective as one writes it by hand.

The sequences of some rows go through one padded forward; logits are computed where a label is.

Shape legend: R sequences, L tokens of the longest, H hidden width, V vocabulary, n labels of a
sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Trainer, TrainingArguments

from benchmarks.peers.contender import Trained, one_step
from benchmarks.peers.data_sets import answered
from benchmarks.peers.models import copy_adapter, lora_config
from benchmarks.peers.objectives import Objective
from causal_core.config import LoraSection, LossSection
from causal_core.loss.objective import Denominators, factors_of
from causal_core.model.causal_model import CausalModel
from causal_core.tokens.triplet import TripletTokens

TITLE = "transformers Trainer, subclassed loss"
# Of activations for each padded token of SmolLM2-135M in float32, as measured on rows of 20 to 220
# tokens (2.25 to 2.44 MB): a row's sequences are in one graph, and nothing is computed again.
_BYTES_PER_TOKEN = 2_400_000

Sequences = list[tuple[list[int], list[int]]]
Logits = Callable[[int], Tensor]  # [n, V] of the answer of a sequence, by its number


def fits(row_tokens: int, memory_bytes: int) -> bool:
    """Whether a forward and backward of one row, padded to `row_tokens`, fit into free memory."""
    return row_tokens * _BYTES_PER_TOKEN < memory_bytes


def subclassed(
    ours: CausalModel,
    base: Any,
    objective: Objective,
    batch: int,
    directory: str,
    lora: LoraSection,
) -> Trained:
    """The trainer on the same rows and weights; `batch` rows in a forward."""
    from peft import get_peft_model

    model = get_peft_model(base, lora_config(base, lora))
    copy_adapter(ours, model)
    arguments = TrainingArguments(
        output_dir=directory,
        remove_unused_columns=False,
        **one_step(len(objective.rows), batch),
    )
    trainer = ObjectiveTrainer(
        model=model,
        args=arguments,
        train_dataset=objective.rows,
        data_collator=lambda rows: {"rows": rows},
    )
    trainer.objective = objective.loss
    trainer.factors = factors_of(objective.loss, Denominators.of(objective.rows))
    return Trained(TITLE, trainer, batch)


class ObjectiveTrainer(Trainer):
    """Task, robust, invariance and preference, each over its count in the whole batch."""

    objective: LossSection
    factors: dict[str, float]
    loss_is_scaled_for_ga = True

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor:
        rows: Sequence[TripletTokens] = inputs["rows"]
        preferring = self.objective.lambda_preference > 0
        sequences: Sequences = []
        for row in rows:
            sequences += answered(row)
            if preferring:
                sequences += [(row.system + i.prompt, i.attack_answer) for i in row.injections]
        logits = answer_logits(model, sequences)
        reference = None
        if preferring:
            with torch.no_grad(), model.disable_adapter():
                attacked, places = _after_attacks(rows, sequences)
                found = answer_logits(model, attacked)
            reference = {place: found(number) for number, place in enumerate(places)}
        return self._loss(rows, logits, reference)

    def _loss(
        self, rows: Sequence[TripletTokens], logits: Logits, reference: dict[int, Tensor] | None
    ) -> Tensor:
        terms: list[Tensor] = []
        at = 0
        for row in rows:
            count, clean = len(row.injections), logits(at)
            terms.append(self._weighted("task", -log_p(clean, row.benign_answer)))
            for number, injection in enumerate(row.injections):
                place = at + 1 + number
                safe = logits(place)
                terms.append(self._weighted("robust", -log_p(safe, injection.answer)))
                if self.factors["invariance"] and row.shared_answer(injection):
                    log_q, log_safe = (F.log_softmax(x, -1) for x in (clean.detach(), safe))
                    divergence = F.kl_div(log_safe, log_q, reduction="sum", log_target=True)
                    terms.append(self._weighted("invariance", divergence))
                if reference is not None:
                    wanted = place + count
                    gained = log_p(safe, injection.answer) - log_p(
                        reference[place], injection.answer
                    )
                    lost = log_p(logits(wanted), injection.attack_answer) - log_p(
                        reference[wanted], injection.attack_answer
                    )
                    preferred = -F.logsigmoid(self.objective.beta * (gained - lost))
                    terms.append(self._weighted("preference", preferred))
            at += 1 + count * (1 + (reference is not None))
        return torch.stack(terms).sum()

    def _weighted(self, name: str, value: Tensor) -> Tensor:
        return value * self.factors[name]


def answer_logits(model: Any, sequences: Sequences) -> Logits:
    """One padded forward; logits are computed for the answers alone."""
    base = model.get_base_model()
    width = max(len(prompt) + len(answer) for prompt, answer in sequences)
    ids_RL = torch.zeros(len(sequences), width, dtype=torch.long)
    mask_RL = torch.zeros(len(sequences), width, dtype=torch.long)
    for row, (prompt, answer) in enumerate(sequences):
        ids_RL[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        mask_RL[row, : len(prompt) + len(answer)] = 1
    hidden_RLH = base.get_decoder()(
        input_ids=ids_RL, attention_mask=mask_RL, use_cache=False
    ).last_hidden_state
    spans = [
        hidden_RLH[row, len(prompt) - 1 : len(prompt) + len(answer) - 1]
        for row, (prompt, answer) in enumerate(sequences)
    ]
    logits = base.get_output_embeddings()(torch.cat(spans)).split([len(span) for span in spans])
    return lambda number: logits[number]


def log_p(logits_nV: Tensor, answer: list[int]) -> Tensor:
    """Log-probability of an answer."""
    return -F.cross_entropy(logits_nV, torch.tensor(answer), reduction="sum")


def _after_attacks(
    rows: Sequence[TripletTokens], sequences: Sequences
) -> tuple[Sequences, list[int]]:
    """The sequences with an attack, which the reference is asked for, and their numbers."""
    places, at = [], 0
    for row in rows:
        count = 2 * len(row.injections)
        places += range(at + 1, at + 1 + count)
        at += 1 + count
    return [sequences[place] for place in places], places
