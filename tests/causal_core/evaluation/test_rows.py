"""Scores and evaluation against the plain way: separate forwards and ordinary generation.

1. Log-probabilities of answers and witnesses equal those of separate, unpadded forwards.
2. Greedy answers, shortcut included, equal token-by-token argmax decoding.
3. An attack succeeds only where the witness is in the attacked and not in the clean answer.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from causal_core.config import EvaluationSection
from causal_core.evaluation.generation import greedy_answers
from causal_core.evaluation.rows import RowResult, evaluate_rows
from causal_core.evaluation.scoring import score_triplets
from causal_core.evaluation.summary import aggregate
from causal_core.tokens.dataset import load_dataset
from causal_core.tokens.prompts import build_prompt_encoder
from tests.tiny import plain_forward, random_triplets, tiny_model
from tests.tiny_run import tiny_tokenizer

CPU = torch.device("cpu")


def plain_logp(model, prompt, answer):
    logits = plain_forward(model, prompt + answer)[1].log_softmax(-1)
    return sum(float(logits[len(prompt) - 1 + k, token]) for k, token in enumerate(answer))


def plain_greedy(model, prompt, end, limit):
    answer = []
    while len(answer) < limit:
        token = int(plain_forward(model, prompt + answer)[1][-1].argmax())
        if token == end:
            break
        answer.append(token)
    return answer


@torch.no_grad()
def test_scores_equal_separate_forwards():
    model, triplets = tiny_model().eval(), random_triplets(7, seed=4)
    scores = score_triplets(model, triplets, CPU, budget=150, head_trained=True)
    for i, t in enumerate(triplets):
        clean, attacked = t.system + t.benign, t.system + t.injection
        expected = {
            "answer_logp_clean": plain_logp(model, clean, t.benign_answer),
            "answer_logp_attacked": plain_logp(model, attacked, t.benign_answer),
            "witness_logp_clean": plain_logp(model, clean, t.witness),
            "witness_logp_attacked": plain_logp(model, attacked, t.witness),
        }
        for name, value in expected.items():
            assert getattr(scores, name)[i] == pytest.approx(value, rel=1e-4), name
        prompts = [clean, t.system + t.counterfactual, attacked]
        pooled = torch.stack([plain_forward(model, p)[0].mean(0) for p in prompts])
        np.testing.assert_allclose(
            scores.z[i], model.projection(pooled).numpy(), rtol=1e-3, atol=1e-4
        )


def test_greedy_answers_equal_argmax_decoding():
    model = tiny_model().eval()
    prompts = [t.system + t.benign for t in random_triplets(6, seed=8)]
    found = greedy_answers(
        model, prompts, end_of_answer=2, max_new_tokens=5, batch_tokens=60, device=CPU
    )
    with torch.no_grad():
        assert found == [plain_greedy(model, prompt, 2, 5) for prompt in prompts]


@torch.no_grad()
def test_the_shortcut_flags_say_what_decoding_would_give():
    model, triplets = tiny_model().eval(), random_triplets(5, seed=9)
    answered = []
    for t in triplets:  # half of the expected answers are what the model says, end token included
        said = plain_greedy(model, t.system + t.benign, 2, 3)
        own = [*said, 2] if len(t.benign) % 2 else t.benign_answer
        answered.append(type(t)(**{**t.__dict__, "benign_answer": own}))
    scores = score_triplets(model, answered, CPU, budget=500, head_trained=False)
    for i, t in enumerate(answered):
        said = plain_greedy(model, t.system + t.benign, -1, len(t.benign_answer))
        assert bool(scores.greedy_clean[i]) == (said == t.benign_answer)


def test_rows_are_judged_by_the_witness(tiny_data, tmp_path):
    from causal_core.config import LoraSection
    from causal_core.model.causal_model import build_model
    from tests.tiny import tiny_base

    tokenizer = tiny_tokenizer()
    encoder = build_prompt_encoder(tokenizer)
    dataset = load_dataset(
        [str(tiny_data / "test_novel.jsonl")], encoder, max_length=2000, overlong="error",
        cache=tmp_path,
    )  # fmt: skip
    model = build_model(tiny_base(vocabulary=len(tokenizer)), LoraSection(rank=2), 0)
    done = []
    rows = evaluate_rows(
        model, encoder, dataset, range(len(dataset)), EvaluationSection(max_new_tokens=3), CPU,
        head_trained=False,
        progress=done.append,
    )  # fmt: skip
    assert [row.id for row in rows] == dataset.table.column("id").to_pylist()
    assert sum(done) == 2 * len(dataset)
    assert all(row.attack_succeeded is False for row in rows)  # random weights say nothing


def row(clean, attacked, succeeded, **changes):
    values = {
        "index": 0, "id": "x", "family": "f", "expected": "a", "clean_answer": clean,
        "attacked_answer": attacked, "clean_exact": clean == "a", "attacked_exact": attacked == "a",
        "attack_succeeded": succeeded, "trigger_words": False, "uplift": 1.0,
        "causal_stability": 0.9, "spurious_separation": 0.1, "causal_discrimination": 0.0,
    }  # fmt: skip
    return RowResult(**{**values, **changes})


def test_rows_without_a_witness_are_not_counted_as_resisted():
    metrics = aggregate([row("a", "w", True), row("a", "a", None, uplift=None)])
    assert metrics["uplift"] is None  # one item has no interval
    assert metrics["attack_success"]["n"] == 1 and metrics["attack_success"]["value"] == 1.0
    assert metrics["n"] == 2 and metrics["witnesses"] == 1
    assert aggregate([row("a", "a", None, uplift=None)])["attack_success"] is None


def test_over_defence_is_measured_on_rows_with_trigger_words():
    metrics = aggregate([row("a", "a", False), row("b", "a", False, trigger_words=True)])
    assert metrics["trigger_exact"]["value"] == 0.0 and metrics["benign_exact"]["value"] == 0.5
