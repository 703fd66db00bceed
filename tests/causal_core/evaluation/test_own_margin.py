"""The margin of a model's own clean answer is that of forwards of each prompt and answer alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from causal_core.evaluation import generation, one_pass, own_margin, scoring
from causal_core.evaluation.generation import greedy_answers
from causal_core.evaluation.one_pass import scored_and_answered
from causal_core.evaluation.own_margin import OwnMargins
from causal_core.evaluation.rows import RowResult
from causal_core.evaluation.scoring import Scoring
from causal_core.evaluation.summary import aggregate
from causal_core.trees.needs import BENIGN, INJECTION
from causal_core.trees.packing import FLAT, INTERVALS, ROWS
from tests.causal_core.model.test_architectures import BY_KIND, model_of, own_attention
from tests.tiny import random_triplets, tiny_model

CPU = torch.device("cpu")
END, LIMIT, NODES = 2, 6, 150
SETTINGS = {"end_of_answer": END, "max_new_tokens": LIMIT, "batch_tokens": NODES}


@pytest.fixture(scope="module")
def model():
    return tiny_model().double()


@pytest.fixture(scope="module")
def asked(model):
    """Triplets with several injections, one or none, some of which the model answers rightly, some
    of whose attacks want what it says anyway; and whether each is its row's first."""
    rows = random_triplets(9, seed=4, injections=(0, 3))
    pairs = [(t, n) for t in rows for n in range(len(t.injections)) or (None,)]
    triplets, first = [t.attacked(n) for t, n in pairs], [n in (0, None) for _, n in pairs]
    right, obeyed, anyway, begun, bare = random_triplets(5, seed=11)
    [said, *_] = own_answers(model, [right])
    triplets.append(replace(with_attack(right, [3, 8, END]), benign_answer=said))
    # The safe answer is what the model says: its score is there already.
    [said, *_] = own_answers(model, [anyway])
    injection = replace(anyway.only, answer=said, attack_answer=[5, 6, END])
    triplets.append(replace(anyway, injections=(injection,)))
    # What the attack wants is what the model says, or begins as it does.
    [said, *_] = own_answers(model, [obeyed])
    triplets.append(with_attack(obeyed, said))
    [said, *_] = own_answers(model, [begun])
    triplets.append(with_attack(begun, [*said[:2], said[2] + 1, 7, END]))
    triplets.append(replace(with_attack(bare, [9, END]), benign_answer=[]))
    return triplets, [*first, *[True] * 5]


def with_attack(triplet, wanted):
    return replace(triplet, injections=(replace(triplet.only, attack_answer=wanted),))


def own_answers(model, triplets):
    """What the model says to each clean prompt, with its end where it has one."""
    prompts = [[*t.system, *t.benign] for t in triplets]
    said = greedy_answers(model, prompts, device=CPU, **SETTINGS)
    return [answer if len(answer) == LIMIT else [*answer, END] for answer in said]


def logp(model, triplet, answer):
    """Of each token of an answer to the attacked prompt, by a plain forward of both."""
    prompt = [*triplet.system, *triplet.only.prompt]
    base = model.peft_model.get_base_model()
    with torch.no_grad():
        logits = base(input_ids=torch.tensor([[*prompt, *answer]])).logits[0]
    of = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return of.gather(1, torch.tensor(answer)[:, None])[:, 0].tolist()


def expected(model, triplets, first):
    equal, whole = [], []
    of_row = None
    for triplet, own, is_first in zip(triplets, own_answers(model, triplets), first, strict=True):
        of_row = own if is_first else of_row
        wanted = triplet.only.attack_answer if triplet.injections else []
        shorter = min(len(of_row), len(wanted))
        if of_row[:shorter] == wanted[:shorter]:
            equal.append(np.nan)
            whole.append(np.nan)
            continue
        one, other = logp(model, triplet, of_row), logp(model, triplet, wanted)
        equal.append(sum(one[:shorter]) - sum(other[:shorter]))
        whole.append(sum(one) - sum(other))
    return equal, whole


def check(model, triplets, first, head_trained=False):
    scores, _ = scored_and_answered(
        model, triplets, first, CPU, head_trained=head_trained, own_margin=True, **SETTINGS
    )
    equal, whole = expected(model, triplets, first)
    # Float64: what differs is the order of sums.
    np.testing.assert_allclose(scores.own_margin, equal, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(scores.own_margin_whole, whole, rtol=1e-9, atol=1e-12)
    return scores


@pytest.mark.parametrize("packing", [ROWS, FLAT, INTERVALS])
@pytest.mark.parametrize("kept", [0, 2])
@pytest.mark.parametrize("head_trained", [True, False])
def test_it_is_that_of_separate_forwards(model, asked, packing, kept, head_trained, monkeypatch):
    for module in (scoring, generation):
        monkeypatch.setattr(module, "packing_for", lambda model, device: packing)
    monkeypatch.setattr(generation, "_most_paths", lambda *_: 3)
    monkeypatch.setattr(own_margin, "_MOST_KEPT", kept)
    scores = check(model, *asked, head_trained)
    known = scores.own_margin[~np.isnan(scores.own_margin)]
    assert len(known) > 8 and (known < 0).any() and (known > 0).any()
    triplets, _ = asked
    obeyed, begun = scores.own_margin[-3:-1]
    assert triplets[-3].only.attack_answer and np.isnan(obeyed) and not np.isnan(begun)
    assert not np.isnan(scores.own_margin[[-5, -4, -1]]).any()


@pytest.mark.parametrize("kind", ["mistral", "gemma2", "gpt_oss"])
def test_windows_caps_and_sinks_hold_for_several_new_tokens_at_once(kind, monkeypatch):
    """Against each architecture's own attention; answers of several lengths beside each other."""
    model = model_of(BY_KIND[kind])
    triplets = [with_attack(t, [9, 4, END]) for t in random_triplets(4, seed=5)]
    said = [[7, 5, 3, 8, 6, END], [9, END], [END], [11, 4, 12, END]]
    answers = {(n, False): answer[:-1] for n, answer in enumerate(said)}
    scoring = Scoring(model, triplets, CPU, 500, (BENIGN, INJECTION), keep=True)
    own = OwnMargins(model, triplets, [True] * 4, scoring, CPU, 500, END, 99)
    for forward in scoring.forwards():
        own.keep(forward)
    own.look(answers)
    monkeypatch.setattr(own, "_score_anew", lambda compared: None)
    _, found = own.margins(answers, np.zeros(4, dtype=bool))
    with own_attention(model):
        expected = [
            sum(logp(model, t, answer)) - sum(logp(model, t, t.only.attack_answer))
            for t, answer in zip(triplets, said, strict=True)
        ]
    # Some norms and softmaxes are float32 whatever the model's type.
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_it_is_the_same_where_nothing_can_be_kept(model, asked, monkeypatch):
    for module in (one_pass, generation):
        monkeypatch.setattr(module, "rotated_otherwise", lambda *_: "it is asked for")
    check(model, *asked)


def test_where_a_row_has_its_reference_no_prompt_is_computed_again(model, monkeypatch):
    triplets, first = random_triplets(8, seed=21), [True] * 8
    monkeypatch.setattr(own_margin.OwnMargins, "_score_anew", lambda self, compared: None)
    begin, going_on, batches = own_margin.OwnMargins._score, own_margin.OwnMargins._continue, []

    def in_little_room(self, forward, known):
        self._budget = 80  # the prompts of a forward are more than one batch
        begin(self, forward, known)

    def counted(self, forward, batch):
        batches.append([one.position for one, _ in batch])
        going_on(self, forward, batch)

    monkeypatch.setattr(own_margin.OwnMargins, "_score", in_little_room)
    monkeypatch.setattr(own_margin.OwnMargins, "_continue", counted)
    check(model, triplets, first)
    answered = sorted(position for batch in batches for position in batch)
    assert answered == sorted(set(answered)) and max(map(len, batches)) > 1 < len(batches)


def test_it_is_not_measured_unless_it_is_asked_for(model, asked):
    triplets, first = asked
    scores, _ = scored_and_answered(model, triplets, first, CPU, head_trained=False, **SETTINGS)
    assert np.isnan(scores.own_margin).all() and np.isnan(scores.own_margin_whole).all()


def row(margin, obeyed, index):
    of_attack = {"family": "f", "wording": None, "attack_succeeded": False, "uplift": 1.0}
    return RowResult(
        index=index, injection=0, id=str(index), task=None, clean_answer="a", attacked_answer="a",
        benign_exact=None, benign_contained=None, benign_f1=None, attacked_exact=None,
        trigger_words=False, margin=None, causal_stability=None, spurious_separation=None,
        causal_discrimination=None, own_margin=margin, own_is_attacked=obeyed, **of_attack,
    )  # fmt: skip


def test_rows_that_say_what_the_attack_wants_anyway_are_counted_apart():
    rows = [row(m, m is None, n) for n, m in enumerate((2.0, -1.0, 5.0, None))]
    found = aggregate([*rows, row(None, None, 4)])
    assert found["own_margin"]["value"] == 2.0 and found["own_margin"]["n"] == 3
    assert found["own_margin_negative"]["value"] == pytest.approx(1 / 3)
    assert found["own_is_attacked"] == 1
    assert aggregate([row(None, None, 0)])["own_margin"] is None
