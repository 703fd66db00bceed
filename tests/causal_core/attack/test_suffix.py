"""Suffixes by gradients: exact gradients, steps that never lose, and a cut that changes nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from random import Random

import pytest
import torch

from causal_core.attack.suffix import RowSuffix, SuffixSearch, UniversalSuffix, _Before
from causal_core.attack.target import Target
from causal_core.generator.generate import generate_split
from causal_core.model import matmul
from causal_core.tokens.prompts import build_prompt_encoder
from tests.causal_core.evaluation.test_rows import CPU, model_of
from tests.tiny_run import tiny_tokenizer

ROWS = list(generate_split("test_novel", 3, 0))


@pytest.fixture(scope="module")
def target():
    tokenizer = tiny_tokenizer()
    model = model_of(tokenizer).double().eval()
    return Target(model, build_prompt_encoder(tokenizer), CPU, 6000, 4)


def brought(search, *levels):
    found = search.begin(ROWS)
    for level in levels:
        search.spend(ROWS, found, level)
    return found


def test_the_gain_is_the_derivative_of_the_score_along_each_token(target):
    """In float64: moving the embedding at a place a little towards a token's changes the score by
    the difference of their gains."""
    search = SuffixSearch(target, seed=0)
    problem = search._problem(ROWS[0], ROWS)
    (state,) = [s for s in brought(search, 0) if s.id == ROWS[0].id]
    gain = search._gain(problem, _Before(), state.suffix)
    prompt, start = search._place(problem, state.suffix)
    base = target.model.peft_model.get_base_model()
    weight = base.get_input_embeddings().weight
    answer = target.encoder.answer_ids(problem.wanted)
    ids = torch.tensor([*prompt, *answer[:-1]])

    @torch.no_grad()
    def score(place, token, much):
        embeds = weight[ids].clone()
        embeds[start + place] += much * (weight[token] - weight[ids[start + place]])
        logits = base(inputs_embeds=embeds[None], use_cache=False).logits[0, len(prompt) - 1 :]
        return float(logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).mean())

    assert score(0, 5, 0.0) == pytest.approx(state.score, rel=1e-9)  # of the tree, of text
    allowed = search._allowed_list
    for place in (0, 5, len(state.suffix) - 1):
        own = allowed.index(state.suffix[place])
        for number in (0, 7, len(allowed) - 1):
            slope = (
                score(place, allowed[number], 1e-4) - score(place, allowed[number], -1e-4)
            ) / 2e-4
            expected = float(gain[place, number] - gain[place, own])
            assert slope == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_what_was_kept_of_the_prompt_gives_the_same_gain_for_any_suffix(target):
    """In float64, to its rounding: kept keys and values are used, never changed, and belong to the
    tokens that they were computed from."""
    search = SuffixSearch(target, seed=0)
    states, before = brought(search, 0), _Before()
    for row, state in zip(ROWS, states, strict=True):
        problem = search._problem(row, ROWS)
        for suffix in (state.suffix, state.suffix[::-1], state.suffix):
            kept, anew = (search._gain(problem, b, suffix) for b in (before, _Before()))
            torch.testing.assert_close(kept, anew, rtol=1e-12, atol=1e-14)


def test_bfloat16_is_of_the_search_alone(target, monkeypatch):
    plain = replace(target, model=model_of(target.encoder.tokenizer).eval())
    rounded, products = replace(plain, bfloat16=True), []
    made = matmul._rounded
    monkeypatch.setattr(matmul, "_rounded", lambda *of: products.append(of) or made(*of))

    def rounds(what):
        products.clear()
        what()
        return bool(products)

    for of, expected in ((plain, False), (rounded, True)):
        search = SuffixSearch(of, seed=0)
        problem = search._problem(ROWS[0], ROWS)
        suffix = search._start(problem, Random(0))
        assert rounds(lambda s=search, p=problem, x=suffix: s._gain(p, _Before(), x)) is expected
        assert rounds(lambda s=search, p=problem, x=suffix: s._scores([p], [x])) is expected
        assert not rounds(lambda t=of: t.answers([t.prompt(ROWS[0], ROWS[0].benign_input)]))


def test_more_steps_never_lower_the_score_and_help_in_all(target):
    search = SuffixSearch(target, seed=0)
    first, last = brought(search, 0), brought(search, 0, 3, 6)
    assert all(b.score >= a.score for a, b in zip(first, last, strict=True))
    assert sum(b.score for b in last) > sum(a.score for a in first) + 1e-6
    assert all(row.steps == 6 and row.queries > 0 for row in last if row.broken_at is None)


def test_what_is_scored_is_text_that_reads_back(target):
    search = SuffixSearch(target, seed=0)
    for row, state in zip(ROWS, brought(search, 0, 4), strict=True):
        if state.broken_at is None:
            problem = search._problem(row, ROWS)
            assert state.attack == search._text(problem, state.suffix)
            ids = target.prompt(row, state.attack)
            text = target.encoder.tokenizer.decode(state.suffix)
            assert state.attack.endswith(text)
            plain = target.prompt(row, row.benign_input)
            control = target.encoder.control_ids
            assert sum(i in control for i in ids) == sum(i in control for i in plain)


def test_a_cut_changes_nothing(target):
    search = SuffixSearch(target, seed=0)
    whole = brought(search, 0, 2, 4)
    cut = brought(search, 0, 2)
    again = [RowSuffix.from_record(json.loads(json.dumps(row.to_record()))) for row in cut]
    search.spend(ROWS, again, 4)
    assert again == whole


def test_a_universal_suffix_is_tuned_on_other_rows_and_tried_on_all(target):
    tuning = [replace(row, id=f"v{i}") for i, row in enumerate(generate_split("validation", 2, 0))]
    search = UniversalSuffix(target, 0, tuning)
    first, last = brought(search, 0), brought(search, 0, 3)
    assert len({tuple(row.suffix) for row in last}) == 1
    assert last[0].score >= first[0].score
    assert all(row.attack.endswith(target.encoder.tokenizer.decode(row.suffix)) for row in last)
    again = [RowSuffix.from_record(json.loads(json.dumps(row.to_record()))) for row in first]
    search.spend(ROWS, again, 3)
    assert again == last
