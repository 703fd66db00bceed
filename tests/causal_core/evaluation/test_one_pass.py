"""Scores and answers of one pass are those of a pass for each, and no prompt is computed twice.

In float64, where two tokens are as good as never equally likely within rounding.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from causal_core.evaluation import generation, one_pass, scoring
from causal_core.evaluation.generation import greedy_answers
from causal_core.evaluation.one_pass import scored_and_answered
from causal_core.evaluation.scoring import score_triplets
from causal_core.trees.packing import FLAT, INTERVALS, ROWS
from tests.tiny import random_triplets, tiny_model

CPU = torch.device("cpu")
END, LIMIT, NODES = 2, 6, 150
SETTINGS = {"end_of_answer": END, "max_new_tokens": LIMIT, "batch_tokens": NODES}


@pytest.fixture(params=[ROWS, FLAT, INTERVALS], ids=["rows", "flat", "intervals"])
def packing(request, monkeypatch):
    for module in (scoring, generation):
        monkeypatch.setattr(module, "packing_for", lambda model, device: request.param)
    monkeypatch.setattr(generation, "_most_paths", lambda *_: 3)
    return request.param


def prompt_of(triplet, attacked):
    return [*triplet.system, *(triplet.only.prompt if attacked else triplet.benign)]


def without_references(triplet):
    """Nothing is predicted after one of its prompts or the other."""
    bare = [replace(i, answer=[], witness=[], attack_answer=[]) for i in triplet.injections]
    return replace(triplet, benign_answer=[], injections=tuple(bare))


def said_by(model, triplet):
    """With the answers that the model gives: nothing has to be generated."""
    said = greedy_answers(
        model, [prompt_of(triplet, False), prompt_of(triplet, True)], device=CPU, **SETTINGS
    )
    clean, attacked = (answer if len(answer) == LIMIT else [*answer, END] for answer in said)
    return replace(
        triplet, benign_answer=clean, injections=(replace(triplet.only, answer=attacked),)
    )


@pytest.fixture(scope="module")
def model():
    return tiny_model().double()


@pytest.fixture(scope="module")
def asked(model):
    """Triplets with several injections, one or none, with and without references, some of which
    the model answers rightly, and one twice; and whether each is its row's first."""
    rows = random_triplets(7, seed=4, injections=(0, 3))
    pairs = [(t, n) for t in rows for n in range(len(t.injections)) or (None,)]
    triplets = [t.attacked(n) for t, n in pairs]
    first = [n in (0, None) for _, n in pairs]
    more = random_triplets(4, seed=11)
    triplets += [said_by(model, more[0]), without_references(more[1]), more[2], more[2], more[3]]
    return triplets, [*first, *[True] * 5]


def equal(one, other):
    """Float64: what differs is the order of sums."""
    for name, values in vars(other).items():
        found = getattr(one, name)
        if name in ("z", "pooled") and found.shape != values.shape:
            found, values = found[:, 0], values[:, 0]  # U is pooled in any case
        np.testing.assert_allclose(found, values, rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("head_trained", [True, False])
def test_scores_and_answers_are_those_of_a_pass_for_each(model, asked, packing, head_trained):
    triplets, first = asked
    scores, answers = scored_and_answered(
        model, triplets, first, CPU, head_trained=head_trained, **SETTINGS
    )
    alone = score_triplets(model, triplets, CPU, NODES, head_trained, first)
    equal(scores, alone)
    wanted = {
        (i, False) for i, is_first in enumerate(first) if is_first and not alone.benign_exact[i]
    }
    wanted |= {
        (i, True) for i, t in enumerate(triplets) if t.injections and not alone.attacked_exact[i]
    }
    assert set(answers) == wanted
    said = len(triplets) - 5
    assert alone.benign_exact[said] and alone.attacked_exact[said] and len(wanted) > 10
    order = sorted(wanted)
    expected = greedy_answers(
        model, [prompt_of(triplets[i], attacked) for i, attacked in order], device=CPU, **SETTINGS
    )
    assert [answers[question] for question in order] == expected


def nodes_of(model, monkeypatch, work):
    """Nodes of all trees that the model computes meanwhile."""
    seen = []
    forward = model.forward

    def counted(batch, keep=False):
        seen.append(batch.nodes)
        return forward(batch, keep)

    with monkeypatch.context() as patch:
        patch.setattr(model, "forward", counted)
        work()
    return sum(seen)


def test_no_prompt_is_computed_again_to_be_answered(model, monkeypatch):
    some = random_triplets(8, seed=21)
    triplets, first = [*some, some[3]], [True] * 9  # equal prompts have one answer

    def both():
        _, answers = scored_and_answered(model, triplets, first, CPU, head_trained=True, **SETTINGS)
        assert len(answers) == 18

    scored = nodes_of(
        model, monkeypatch, lambda: score_triplets(model, triplets, CPU, NODES, True, first)
    )
    assert nodes_of(model, monkeypatch, both) == scored


def test_where_kept_keys_would_be_of_other_positions_answers_are_the_librarys(
    model, asked, monkeypatch
):
    triplets, first = asked
    wanted = scored_and_answered(model, triplets, first, CPU, head_trained=False, **SETTINGS)[1]
    for module in (one_pass, generation):
        monkeypatch.setattr(module, "rotated_otherwise", lambda *_: "it is asked for")
    monkeypatch.setattr(one_pass, "decode", None)
    found = scored_and_answered(model, triplets, first, CPU, head_trained=False, **SETTINGS)[1]
    assert found == wanted


def test_a_model_that_is_trained_goes_on_training(model, asked):
    triplets, first = asked
    model.train()
    scored_and_answered(model, triplets, first, CPU, head_trained=True, **SETTINGS)
    assert model.training
    model.eval()


def test_hooks_that_copy_what_a_model_is_given_lose_no_key(model):
    """As DeepSpeed's do in ZeRO-3: they make lists and tuples anew around every forward."""
    rows = random_triplets(3, seed=6)

    def answered():
        return scored_and_answered(model, rows, [True] * 3, CPU, head_trained=True, **SETTINGS)[1]

    def anew(value):
        return type(value)(map(anew, value)) if isinstance(value, list | tuple) else value

    def copied(module, args, kwargs):
        return anew(args), {name: anew(value) for name, value in kwargs.items()}

    expected = answered()
    hook = model.register_forward_pre_hook(copied, with_kwargs=True)
    try:
        assert answered() == expected
    finally:
        hook.remove()
