"""A suffix tuned along a run: its order, its share of the steps, and a cut that changes nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from causal_core.attack import warm
from causal_core.attack.suffix import SuffixSearch
from causal_core.attack.target import Target
from causal_core.attack.warm import RowAlong, SuffixAlong
from causal_core.generator.generate import generate_split
from causal_core.tokens.prompts import build_prompt_encoder
from tests.causal_core.evaluation.test_rows import CPU, model_of
from tests.tiny_run import tiny_tokenizer

ROWS = [  # of a few words: a step takes a forward of dozens of them
    replace(row, system_instruction=f"Name it: {city}?", benign_input=f"In {city}.",
            benign_output=city, context=None)
    for row, city in zip(generate_split("test_novel", 2, 0), ("Oslo", "Lima"), strict=True)
]  # fmt: skip
WAY = (None, Path("first"), Path("second"), Path("trained"))


def put(checkpoint, model):
    """Weights that only the checkpoint's name decides."""
    generator = torch.Generator().manual_seed(len(checkpoint.name))
    with torch.no_grad():
        for name, parameter in model.trainable_parameters().items():
            if "lora_B" in name:
                parameter.normal_(0, 0.2, generator=generator)


@pytest.fixture
def target():
    tokenizer = tiny_tokenizer()
    model = model_of(tokenizer).double().eval()
    put(WAY[-1], model)
    return Target(model, build_prompt_encoder(tokenizer), CPU, 6000, 4)


@pytest.fixture
def loaded(monkeypatch):
    names = []

    def load(checkpoint, model):
        names.append(checkpoint.name)
        put(checkpoint, model)

    monkeypatch.setattr(warm, "load_weights", load)
    return names


def brought(search, *levels):
    found = search.begin(ROWS)
    for level in levels:
        search.spend(ROWS, found, level)
    return found


def test_it_goes_from_the_base_through_the_checkpoints_in_order(target, loaded, monkeypatch):
    visits = []

    def tune(self, own, problem, handed, steps, number):
        adapted = target.model.peft_model.base_model.model.model.layers[0].self_attn.q_proj
        place = "base" if adapted.disable_adapters else loaded[-1]
        visits.append((place, own.id, handed, steps))
        own.suffix, own.steps = [number + 10], steps

    monkeypatch.setattr(SuffixAlong, "_tune", tune)
    brought(SuffixAlong(target, 0, WAY), 6)
    assert loaded == ["first", "second", "trained"]
    names, shares = ("base", "first", "second", "trained"), (1, 1, 2, 2)
    assert visits == [
        (name, row.id, [number + 9] if number else None, share)
        for number, (name, share) in enumerate(zip(names, shares, strict=True))
        for row in ROWS
    ]


@pytest.mark.parametrize("level", [0, 3, 6, 25])
def test_the_steps_of_all_models_are_the_level(target, loaded, monkeypatch, level):
    def bring(self, state, problems, wanted, name):
        state.steps = max(state.steps, wanted)

    monkeypatch.setattr(SuffixAlong, "_bring", bring)
    found = brought(SuffixAlong(target, 0, WAY), level // 2, level)
    for row in found:
        assert row.steps == sum(own.steps for own in row.models)
        assert row.steps == level or row.broken_at == level // 2
    assert any(row.steps == level for row in found)


def test_every_model_has_its_own_score_and_the_last_is_what_is_answered(target, loaded):
    search = SuffixAlong(target, 0, WAY)
    first, found, told = brought(search, 0), brought(search, 0), []
    search.spend(ROWS, found, 4, lambda: told.append(1))
    assert len(told) == len(ROWS) * len(WAY)
    for row, state, before in zip(ROWS, found, first, strict=True):
        if state.broken_at is not None:
            continue
        problem = search._problem(row, ROWS)
        assert state.steps == 4 and state.queries > 0
        assert state.attack == search._text(problem, state.suffix)
        # The weights in the model are the trained ones again. In float64, up to the order in which
        # another number of candidates side by side is added up.
        score = search._scores([problem], [state.suffix])[0]
        assert score == pytest.approx(state.score, rel=1e-12)
        handed = search._scores([problem], [state.models[-2].suffix])[0]
        assert state.score >= max(before.score, handed) - 1e-12 * abs(state.score)
        put(WAY[1], target.model)
        own = state.models[1]
        assert search._scores([problem], [own.suffix]) == [pytest.approx(own.score, rel=1e-12)]
        put(WAY[-1], target.model)
    assert any(state.broken_at is None for state in found)


def test_a_cut_changes_nothing(target, loaded):
    search = SuffixAlong(target, 0, WAY)
    whole, cut = brought(search, 0, 2, 4), brought(search, 0, 2)
    again = [RowAlong.from_record(json.loads(json.dumps(row.to_record()))) for row in cut]
    search.spend(ROWS, again, 4)
    assert again == whole


def test_without_a_way_it_is_the_search_from_a_cold_start(target, loaded):
    along, cold = (brought(kind(target, 0), 0, 2) for kind in (SuffixAlong, SuffixSearch))
    for one, other in zip(along, cold, strict=True):
        assert {**one.to_record(), "models": None} == {**other.to_record(), "models": None}
    assert not loaded


def test_a_suffix_that_is_given_is_where_it_begins_if_it_is_better(target, loaded):
    cold = brought(SuffixSearch(target, 0), 0, 2)
    plain = brought(SuffixAlong(target, 0, WAY), 0)
    open_rows = [number for number, row in enumerate(plain) if row.broken_at is None]
    number = next(n for n in open_rows if cold[n].score > plain[n].score)
    given = brought(SuffixAlong(target, 0, WAY, cold[number].suffix), 0)[number]
    assert given.suffix == cold[number].suffix
    assert given.score == pytest.approx(cold[number].score, rel=1e-12)
    search = SuffixAlong(target, 0, WAY)
    repeated = [[token] * len(given.suffix) for token in search._allowed_list]
    scores = search._scores([search._problem(ROWS[number], ROWS)], repeated)
    assert min(scores) < plain[number].score
    worse = repeated[scores.index(min(scores))]
    kept = brought(SuffixAlong(target, 0, WAY, worse), 0)[number]
    assert kept.suffix == plain[number].suffix
