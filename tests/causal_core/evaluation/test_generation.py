"""Decoding from kept keys and values gives what the library's own generation gives.

In float64, where two tokens are as good as never equally likely within rounding.
"""

from __future__ import annotations

import logging
from functools import cache

import pytest
import torch

from causal_core.evaluation import generation
from causal_core.evaluation.generation import greedy_answers, plain_greedy_answers
from causal_core.trees.packing import FLAT, INTERVALS, ROWS
from tests.causal_core.model.architectures import WINDOW
from tests.causal_core.model.test_architectures import BY_KIND, EXACT, model_of, own_attention
from tests.tiny import random_triplets, tiny_model

CPU = torch.device("cpu")
ALL_LAYOUTS = pytest.mark.parametrize(
    "packing", [ROWS, FLAT, INTERVALS], ids=["rows", "flat", "intervals"]
)
SETTINGS = {"end_of_answer": 2, "max_new_tokens": 9, "batch_tokens": 60, "device": CPU}


def prompts_of(count, seed):
    """Clean and attacked prompts, some of them twice."""
    triplets = random_triplets(count, seed)
    found = [t.system + p for t in triplets for p in (t.benign, t.only.prompt)]
    return [*found, found[0]]


def paths_at_once(monkeypatch, count):
    monkeypatch.setattr(generation, "_most_paths", lambda *_: count)


@cache
def one_by_one(kind, limit):
    """Of an architecture's model, through its own attention, with nothing kept."""
    model, prompts = model_of(BY_KIND[kind]), prompts_of(3, seed=5)
    base, answers = model.peft_model.get_base_model(), []
    with own_attention(model), torch.no_grad():
        for prompt in prompts:
            ids = list(prompt)
            while len(ids) < len(prompt) + limit:
                logits = base(input_ids=torch.tensor([ids]), use_cache=False).logits
                if (token := int(logits[0, -1].argmax())) == 2:
                    break
                ids.append(token)
            answers.append(ids[len(prompt) :])
    return answers


@ALL_LAYOUTS
@pytest.mark.parametrize("architecture", EXACT, ids=lambda a: a.kind)
def test_answers_are_those_of_the_models_own_attention(architecture, packing, monkeypatch):
    monkeypatch.setattr(generation, "packing_for", lambda model, device: packing)
    paths_at_once(monkeypatch, 3)
    model, prompts = model_of(architecture), prompts_of(3, seed=5)
    assert max(map(len, prompts)) > 2 * WINDOW
    assert greedy_answers(model, prompts, **SETTINGS) == one_by_one(architecture.kind, 9)


@pytest.mark.parametrize("at_once", [1, 2, 5, 100])
def test_how_many_answers_grow_at_once_changes_none(at_once, monkeypatch):
    model, prompts = tiny_model(gradient_checkpointing=True).double(), prompts_of(6, seed=3)
    endless = plain_greedy_answers(model, prompts, **SETTINGS)
    settings = {**SETTINGS, "end_of_answer": endless[0][4]}
    expected = plain_greedy_answers(model, prompts, **settings)
    assert len({len(answer) for answer in expected}) > 1  # some end before others
    paths_at_once(monkeypatch, at_once)
    done = []
    model.train()
    assert greedy_answers(model, prompts, **settings, progress=done.append) == expected
    assert model.training and sum(done) == len(prompts)
    backwards = greedy_answers(model, prompts[::-1], **settings)
    assert backwards[::-1] == expected


def test_answers_of_the_base_are_those_without_the_adapter():
    model, prompts = tiny_model().double(), prompts_of(4, seed=3)
    adapted = greedy_answers(model, prompts, **SETTINGS)
    with model.peft_model.disable_adapter():
        found = greedy_answers(model, prompts, **SETTINGS)
        assert found == plain_greedy_answers(model, prompts, **SETTINGS)
    assert found != adapted


def test_no_prompts_and_no_room_are_answers_too():
    model = tiny_model()
    assert greedy_answers(model, [], **SETTINGS) == []
    assert greedy_answers(model, [[5]], **{**SETTINGS, "max_new_tokens": 0}) == [[]]
    one = greedy_answers(model, [[5, 6]], **{**SETTINGS, "max_new_tokens": 1})
    assert one == plain_greedy_answers(model, [[5, 6]], **{**SETTINGS, "max_new_tokens": 1})


def test_where_longer_sequences_are_rotated_otherwise_the_library_generates(caplog):
    model, prompts = tiny_model().double(), prompts_of(2, seed=3)
    config = model.peft_model.get_base_model().config
    config.rope_parameters = {**config.rope_parameters, "rope_type": "dynamic"}
    config.max_position_embeddings = max(map(len, prompts))
    with caplog.at_level(logging.WARNING):
        found = greedy_answers(model, prompts, **SETTINGS)
    assert "dynamic" in caplog.text
    assert found == plain_greedy_answers(model, prompts, **SETTINGS)


def test_there_is_no_more_room_than_the_prompts_need(monkeypatch):
    rooms = []

    class Watched(generation.PathCache):
        def __init__(self, like, paths, width):
            rooms.append(paths)
            super().__init__(like, paths, width)

    monkeypatch.setattr(generation, "PathCache", Watched)
    prompts = prompts_of(3, seed=3)
    greedy_answers(tiny_model(), prompts, **SETTINGS)
    assert rooms == [len(set(map(tuple, prompts)))]


def test_the_cache_is_bounded():
    kept = [(torch.zeros(1, 2, 1, 8), torch.zeros(1, 2, 1, 8))] * 3  # 384 bytes a token
    assert generation._most_paths(kept, 100, 64, 2**20) == 2**20 // 384 // 100
    assert generation._most_paths(kept, 100, 640, 0) == 6
    heavy = [(torch.zeros(1, 2**14, 1, 2**10), torch.zeros(1, 2**14, 1, 2**10))] * 3
    assert generation._most_paths(heavy, 100, 4096, 2**20) == 40
    assert generation._most_paths(heavy, 100, 64, 2**20) == 1
