"""What a validation says of attacks is what the evaluation says of them, with fewer answers."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
import torch

from causal_core.config import EvaluationSection, LoraSection
from causal_core.data.writer import to_table, write_triplets
from causal_core.evaluation.gate import chosen_attacks, succeeded
from causal_core.evaluation.rows import evaluate_rows
from causal_core.evaluation.scoring import score_triplets
from causal_core.generator.generate import generate_split
from causal_core.model.causal_model import build_model
from causal_core.tokens.dataset import load_dataset
from causal_core.tokens.prompts import build_prompt_encoder
from tests.causal_core.evaluation.said import evaluation_says
from tests.tiny import tiny_base
from tests.tiny_run import tiny_tokenizer

CPU = torch.device("cpu")


@pytest.fixture
def encoder():
    return build_prompt_encoder(tiny_tokenizer())


@pytest.fixture
def dataset(encoder, tmp_path):
    rows = list(generate_split("train", 6, seed=1, attacks_per_row=3))
    write_triplets(to_table(rows), tmp_path / "rows.jsonl")
    paths = [str(tmp_path / "rows.jsonl")]
    return load_dataset(paths, encoder, max_length=3000, overlong="error", cache=tmp_path)


def flags_of(model, encoder, dataset, chosen):
    every = [(i, n) for i in range(len(dataset)) for n in dataset.injections_of(i)]
    tokens = [dataset.tokens(i).attacked(n) for i, n in every]
    scores = score_triplets(model, tokens, CPU, 4096, False, [n == 0 for _, n in every])
    places = [every.index(attack) for attack in chosen]
    return succeeded(
        model, encoder, dataset, chosen, scores, places, EvaluationSection(), 4096, CPU
    )


@pytest.mark.parametrize("seed", range(5))
def test_flags_are_those_of_the_evaluation(encoder, dataset, monkeypatch, seed):
    """Whatever the model says: here what a dice says, the same for the same prompt."""
    rng, said, asked = Random(seed), {}, []
    for i in range(len(dataset)):
        tokens, triplet = dataset.tokens(i), dataset.triplet(i)
        witnesses = [injection.witness for injection in triplet.injections]
        for prompt in (tokens.benign, *(injection.prompt for injection in tokens.injections)):
            answer = " and ".join(
                rng.sample([triplet.benign_output, *witnesses], rng.randint(1, 4))
            )
            said[tuple(tokens.system + prompt)] = encoder.answer_ids(answer)

    def answers(model, prompts, **_):
        asked.extend(map(tuple, prompts))
        return [said[tuple(prompt)] for prompt in prompts]

    model = build_model(tiny_base(vocabulary=len(encoder.tokenizer)), LoraSection(rank=2), 0)
    evaluation_says(monkeypatch, answers)
    rows = evaluate_rows(
        model, encoder, dataset, range(len(dataset)), EvaluationSection(), CPU, head_trained=False
    )
    expected = {(row.index, row.injection): row.attack_succeeded for row in rows}
    assert 0 < sum(expected.values()) < len(expected)
    everything = set(asked)
    asked.clear()
    monkeypatch.setattr("causal_core.evaluation.gate.greedy_answers", answers)
    chosen = chosen_attacks(dataset, 100)
    assert flags_of(model, encoder, dataset, chosen) == [expected[attack] for attack in chosen]
    assert set(asked) <= everything  # equal prompts are computed once


def test_of_exactly_right_answers_nothing_is_generated(encoder, dataset, monkeypatch):
    model = build_model(tiny_base(vocabulary=len(encoder.tokenizer)), LoraSection(rank=2), 0)
    chosen = chosen_attacks(dataset, 100)
    tokens = [dataset.tokens(i).attacked(n) for i, n in chosen]
    scores = score_triplets(model, tokens, CPU, 4096, False)
    scores.attacked_exact[:] = True

    def none(model, prompts, **_):
        assert not prompts
        return []

    monkeypatch.setattr("causal_core.evaluation.gate.greedy_answers", none)
    places = range(len(chosen))
    found = succeeded(
        model, encoder, dataset, chosen, scores, places, EvaluationSection(), 4096, CPU
    )
    assert found == [False] * len(chosen)


def test_few_attacks_are_chosen_from_all_over_the_data(dataset):
    every = chosen_attacks(dataset, 1000)
    assert len(every) == 18 and chosen_attacks(dataset, 18) == every
    few = chosen_attacks(dataset, 4)
    assert len(few) == 4 and few[0] == every[0] and few[-1] == every[-1]
    assert np.all(np.diff([every.index(attack) for attack in few]) > 3)
    assert chosen_attacks(dataset, 1) == every[:1]
