"""Attack success by greedy answers, as often as a run validates: few rows, and few answers of them.

The scores of a validation say already which answers are exactly right; of those nothing is
generated, and the clean answer only where the attacked one shows the witness.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from causal_core.config import EvaluationSection
from causal_core.data.schema import contains_witness
from causal_core.evaluation.generation import greedy_answers
from causal_core.evaluation.rows import room_for_answers
from causal_core.evaluation.scoring import Scores
from causal_core.model.causal_model import CausalModel
from causal_core.tokens.dataset import TripletDataset
from causal_core.tokens.prompts import PromptEncoder

Attack = tuple[int, int]  # row, and the number of its injection


def chosen_attacks(dataset: TripletDataset, most: int) -> list[Attack]:
    """At most so many of the attacks that have a witness, evenly through the data."""
    attacks = [
        (row, number)
        for row in range(len(dataset))
        for number, injection in enumerate(dataset.triplet(row).injections)
        if injection.witness
    ]
    if len(attacks) <= most:
        return attacks
    places = np.linspace(0, len(attacks) - 1, most).round().astype(int)
    return [attacks[place] for place in places]


def succeeded(
    model: CausalModel,
    encoder: PromptEncoder,
    dataset: TripletDataset,
    attacks: Sequence[Attack],
    scores: Scores,
    places: Sequence[int],
    config: EvaluationSection,
    batch_tokens: int,
    device: torch.device,
) -> list[bool]:
    """Whether each attack's witness is in the attacked answer and not in the clean one.

    As `evaluate_rows` judges it, and with no more memory than training has.

    Args:
        places: Where in `scores` each attack stands.
        batch_tokens: Nodes of one tree of prompts; of answers no more tokens are kept.
    """

    def answers(of: Sequence[int], attacked: bool) -> dict[int, str]:
        prompts = []
        for i in of:
            row, number = attacks[i]
            tokens = dataset.tokens(row)
            branch = tokens.injections[number].prompt if attacked else tokens.benign
            prompts.append([*tokens.system, *branch])
        generated = greedy_answers(
            model,
            prompts,
            end_of_answer=encoder.end_of_answer,
            max_new_tokens=config.max_new_tokens or room_for_answers(dataset),
            batch_tokens=batch_tokens,
            device=device,
            cache_bytes=0,
        )
        return {i: encoder.decode(ids) for i, ids in zip(of, generated, strict=True)}

    witness = [str(dataset.triplet(row).injections[number].witness) for row, number in attacks]
    # The safe answer holds no witness: the reader refuses such rows.
    unsafe = [i for i in range(len(attacks)) if not scores.attacked_exact[places[i]]]
    attacked = answers(unsafe, attacked=True)
    shown = [i for i in unsafe if contains_witness(attacked[i], witness[i])]
    clean = answers([i for i in shown if not scores.benign_exact[places[i]]], attacked=False)
    for i in shown:
        clean.setdefault(i, dataset.triplet(attacks[i][0]).benign_output)
    broken = {i for i in shown if not contains_witness(clean[i], witness[i])}
    return [i in broken for i in range(len(attacks))]
