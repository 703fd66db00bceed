"""The search for an attack: exact scores, a curve that never falls, the same after a cut.

1. A candidate's score in the tree equals that of a separate forward.
2. Success needs the target in the attacked answer and not in the clean one; with more queries there
   are never fewer successes.
3. A search that goes on from its record ends like one that was never cut.
4. No candidate can hold a control token.
"""

from __future__ import annotations

import json
from random import Random

import pytest
import torch

from causal_core.attack import kit as kits
from causal_core.attack import target as targets
from causal_core.attack.kit import Choice, Kit, words_kit
from causal_core.attack.search import BUDGETS, RowSearch, Search
from causal_core.attack.target import Target
from causal_core.generator.families import families
from causal_core.generator.generate import generate_split
from causal_core.tokens.prompts import build_prompt_encoder
from tests.causal_core.evaluation.test_rows import CPU, model_of, plain_logp
from tests.tiny_run import tiny_tokenizer

ROWS = list(generate_split("test_novel", 4, 0))
KIT = words_kit()


@pytest.fixture(scope="module")
def target():
    tokenizer = tiny_tokenizer()
    model = model_of(tokenizer).eval()
    return Target(model, build_prompt_encoder(tokenizer), CPU, 4000, 4)


def searched(target, levels=(1, 4, 16), seed=0):
    search = Search(target, KIT, seed)
    found = search.begin(ROWS)
    for level in levels:
        search.spend(ROWS, found, level)
    return found


def drawn(number):
    return Search(None, KIT, 0).drawn(Random(number))


def says(monkeypatch, answer):
    """A model that answers a list of prompts so."""
    monkeypatch.setattr(Target, "answers", lambda self, prompts: answer(self, prompts))


def test_the_wordings_are_not_the_generators():
    known = {
        text
        for family in families().values()
        for part in (family.wordings.train, family.wordings.validation, family.wordings.test)
        for text in part
    }
    own = set(KIT.wrappers)
    assert len(own) >= 20 and own & known <= {"{payload}"}
    assert all(text.count("{payload}") >= 1 for text in own)


@torch.no_grad()
def test_a_score_is_that_of_a_separate_forward(target):
    row = ROWS[0]
    candidates = [KIT.candidate(row, ROWS, drawn(n), 0) for n in range(5)]
    for (text, wanted), score in zip(candidates, target.scores(row, candidates), strict=True):
        prompt = target.encoder.prompt_ids(row.system_instruction, text, row.context)
        answer = target.encoder.answer_ids(wanted)
        expected = plain_logp(target.model, prompt, answer) / len(answer)
        assert score == pytest.approx(expected, rel=1e-4)


def test_a_choice_is_a_function_of_its_numbers_and_a_mutation_changes_one():
    for number in range(50):
        choice = drawn(number)
        text, wanted = KIT.candidate(ROWS[0], ROWS, choice, 0)
        assert (text, wanted) == KIT.candidate(ROWS[0], ROWS, choice, 0)
        assert text != ROWS[0].benign_input and wanted not in ROWS[0].benign_input
        child = Search(None, KIT, 0).mutated(choice, Random(number))
        before, after = (list(vars(c).values()) for c in (choice, child))
        assert sum(a != b for a, b in zip(before, after, strict=True)) <= 1
        assert all(0 <= value < size for value, size in zip(after, KIT.sizes, strict=True))


def test_a_model_that_never_obeys_is_not_broken_and_every_query_is_counted(target, monkeypatch):
    says(monkeypatch, lambda target, prompts: ["no"] * len(prompts))
    searches = searched(target)
    assert [row.queries for row in searches] == [16] * len(ROWS)
    assert all(row.broken_at is None and row.attack for row in searches)


@pytest.mark.parametrize("clean_says_it", [False, True])
def test_a_model_that_obeys_is_broken_unless_it_says_so_anyway(target, monkeypatch, clean_says_it):
    def obedient(target, prompts):
        """Repeats the whole prompt: whatever is asked for is in it."""
        return [target.encoder.tokenizer.decode(ids) for ids in prompts]

    says(monkeypatch, obedient)
    monkeypatch.setattr(kits, "_other", lambda *_: None)  # targets are codewords of the prompt
    search = Search(target, KIT, 0)
    searches = search.begin(ROWS)
    if clean_says_it:
        choices = [Choice(w, 0, 0, 0, n) for w in range(3) for n in range(8)]
        words = {KIT.candidate(row, ROWS, choice, 0)[1] for row in ROWS for choice in choices}
        for found in searches:
            found.clean_answer = " ".join(words)
    for level in (1, 4):
        search.spend(ROWS, searches, level)
    assert [s.broken_at for s in searches] == [None if clean_says_it else 1] * len(ROWS)


def test_the_curve_never_falls_and_a_broken_row_costs_nothing_more(target, monkeypatch):
    calls = iter([["-"] * len(ROWS)])

    def sometimes(target, prompts):
        return next(calls, None) or ["teal"] * len(prompts)

    says(monkeypatch, sometimes)
    monkeypatch.setattr(targets, "contains_witness", lambda text, word: text == "teal")
    search = Search(target, KIT, 0)
    searches = search.begin(ROWS)
    monkeypatch.setattr(Kit, "candidate", lambda self, row, rows, choice, seed: ("text", "teal"))
    monkeypatch.setattr(Target, "scores", lambda self, row, found: [0.0] * len(found))
    broken = []
    for level in BUDGETS[:3]:
        search.spend(ROWS, searches, level)
        broken.append(sum(s.broken_at is not None and s.broken_at <= level for s in searches))
    assert broken == sorted(broken) and broken[0] == len(ROWS)
    assert all(row.queries == len(row.tried) == 1 for row in searches)


def test_a_search_goes_on_from_its_record_as_if_it_had_not_been_cut(target):
    whole = searched(target)
    cut = searched(target, levels=(1, 4))
    again = [RowSearch.from_record(json.loads(json.dumps(s.to_record()))) for s in cut]
    assert again == cut
    Search(target, KIT, 0).spend(ROWS, again, 16)
    assert again == whole


def test_another_seed_searches_elsewhere(target):
    assert searched(target, (4,), seed=1)[0].tried != searched(target, (4,))[0].tried


def test_no_candidate_holds_a_control_token(target):
    encoder = target.encoder
    for number in range(40):
        text, _ = KIT.candidate(ROWS[1], ROWS, drawn(number), 0)
        ids = encoder.prompt_ids(ROWS[1].system_instruction, text, None)
        plain = encoder.prompt_ids(ROWS[1].system_instruction, ROWS[1].benign_input, None)
        control = encoder.control_ids
        assert sum(i in control for i in ids) == sum(i in control for i in plain)
