"""The table of terms is what everything else says about the objective.

1. Config, documents, the plain definition in tests/tiny.py and the exactness tests know just these
   terms, and what is written of each is the same everywhere.
2. Only what a weighted term needs is asked for.
3. A denominator counts over the whole batch what the term sums.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from causal_core.config import LossSection
from causal_core.config_loss import LOSS_PRESETS
from causal_core.loss.objective import (
    TERMS,
    Denominators,
    LabelTerm,
    computed_terms,
    is_contrastive,
    needs_of,
)
from causal_core.trees.needs import BENIGN, BRANCHES, TASK
from tests.tiny import ALL_TERMS, plain_loss, random_triplets, tiny_model

NAMES = [term.name for term in TERMS]
DOCUMENT = (Path(__file__).resolve().parents[3] / "docs/losses.md").read_text(encoding="utf-8")


def only(name: str) -> LossSection:
    return LossSection(**{**dict.fromkeys((t.weight for t in TERMS), 0.0), f"lambda_{name}": 1.0})


def test_config_has_a_weight_for_every_term_and_no_other():
    assert LossSection.terms() == NAMES
    assert list(LossSection().weights()) == NAMES
    assert all(term.weight in LossSection.model_fields for term in TERMS)
    for preset, weights in LOSS_PRESETS.items():
        assert weights.keys() <= set(NAMES), preset


def test_every_term_is_held_against_its_definition_by_plain_forwards():
    assert set(ALL_TERMS) == {term.weight for term in TERMS}
    _, defined = plain_loss(tiny_model(), random_triplets(4, seed=1), LossSection(**ALL_TERMS))
    assert defined.keys() == set(NAMES)


def test_the_document_says_what_the_table_says():
    text = re.sub(r"[ \n]+", " ", DOCUMENT)
    for term in TERMS:
        assert f"{term.weight} * {term.formula} / {term.denominator}" in text
        assert f"| `{term.name}` | {term.effect} | {term.source} |" in text
    assert len(re.findall(r"lambda_\w+ \* ", text)) == len(TERMS)


@pytest.mark.parametrize("term", TERMS, ids=NAMES)
def test_a_term_asks_for_what_it_reads_and_nothing_else(term):
    loss = only(term.name)
    reads = term.groups if isinstance(term, LabelTerm) else ()
    needs = needs_of(loss)
    assert needs.groups == tuple(dict.fromkeys((TASK, *reads)))  # `task` is reported in any case
    assert needs.branches == ((BENIGN,) if isinstance(term, LabelTerm) else BRANCHES)
    assert is_contrastive(loss) is not isinstance(term, LabelTerm)
    asks = None if isinstance(term, LabelTerm) else term.weight
    assert loss.asks_for_counterfactual() == asks
    assert [t.name for t in computed_terms(loss)] == list(dict.fromkeys(("task", term.name)))


def test_the_task_is_reported_without_weight_too():
    assert "task" in {term.name for term in computed_terms(only("robust"))}


def test_denominators_count_what_the_terms_sum():
    triplets = random_triplets(9, seed=3, injections=(0, 3))
    injections = [(t, i) for t in triplets for i in t.injections]
    shared = [t for t, i in injections if t.benign_answer == i.answer]
    wanted = [i for _, i in injections if i.attack_answer]
    assert 0 < len(shared) < len(injections)
    assert 0 < len(wanted) < len(injections)
    counts = Denominators.of(triplets)
    assert counts.triplets == 9
    assert counts.by_term == {
        "task": sum(len(t.benign_answer) for t in triplets),
        "causal": 9,
        "spurious": len(injections),
        "robust": sum(len(i.answer) for _, i in injections),
        "invariance": sum(len(t.benign_answer) for t in shared),
        "preference": len(wanted),
        "anchor": sum(len(t.benign_answer) for t in triplets),
    }
