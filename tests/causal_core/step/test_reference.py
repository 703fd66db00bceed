"""What is known of rows without the adapter: exact, the same bits in any company, computed once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from causal_core.config import LossSection, TrainSection
from causal_core.engines.plain import PlainEngine
from causal_core.loss.objective import (
    Denominators,
    micro_batch_loss,
    needs_of,
    reference_groups,
    reference_hidden,
)
from causal_core.step import reference
from causal_core.step.reference import KnownRows
from causal_core.step.train_step import TrainStep
from causal_core.trees.packing import FLAT, INTERVALS, ROWS, cut_micro_batches
from tests.tiny import gradients, random_triplets, relative_error, tiny_model

CPU = torch.device("cpu")
LOSS = LossSection(lambda_preference=0.8, lambda_invariance=0.2)


def rows_of(seed=1):
    rows = random_triplets(7, seed, injections=(0, 4))
    return [replace(row, id="one name") for row in rows]  # which says nothing


def known_rows(model, packing=FLAT):
    return KnownRows(model, reference_groups(LOSS), packing, CPU)


@pytest.fixture
def forwards(monkeypatch):
    """The forwards without the adapter that are taken for single rows."""
    taken = []

    def counted(model, batch):
        taken.append(batch.nodes)
        return reference_hidden(model, batch)

    monkeypatch.setattr(reference, "reference_hidden", counted)
    return taken


@pytest.mark.parametrize("packing", [ROWS, FLAT, INTERVALS], ids=["rows", "flat", "intervals"])
@pytest.mark.parametrize("worst_case", [None, 0.5])
def test_what_is_known_is_what_the_forward_of_the_same_tree_says(packing, worst_case):
    model, rows = tiny_model().double(), rows_of()
    loss = LOSS.model_copy(update={"worst_case": worst_case})
    counts, known = Denominators.of(rows), known_rows(model, packing)
    micro_batches = cut_micro_batches(rows, needs_of(loss), 120, packing)
    assert len(micro_batches) > 1
    found = []
    for ready in (False, True):
        model.zero_grad(set_to_none=True)
        total = 0.0
        for micro in micro_batches:
            given = (
                known.of({i: rows[i] for i in micro.owners})
                if ready
                else reference_hidden(model, micro.batch)
            )
            value, _ = micro_batch_loss(model, model(micro.batch), micro.batch, loss, counts, given)
            value.backward()
            total += float(value.detach())
        found.append((total, gradients(model)))
    (expected, by_tree), (total, by_row) = found
    assert total == pytest.approx(expected, rel=1e-10)
    assert relative_error(by_row, by_tree) < 1e-10


def test_the_bits_of_a_row_do_not_depend_on_when_and_beside_what_it_was_computed(
    forwards, monkeypatch
):
    model, rows = tiny_model(), rows_of()
    together = known_rows(model)
    first = together.of(dict(enumerate(rows)))
    with_labels = sum(any(i.answer or i.attack_answer for i in row.injections) for row in rows)
    assert len(forwards) == with_labels < len(rows)
    again = together.of(dict(reversed(list(enumerate(rows)))))
    assert len(forwards) == with_labels  # known
    monkeypatch.setattr(reference, "MOST_ROWS", 2)
    few = known_rows(model)
    for group in ("robust", "attack"):
        alone = [few.of({0: row}).values[group] for row in rows]
        assert torch.equal(torch.cat(alone), first.values[group])
        assert torch.equal(torch.cat(alone[::-1]), again.values[group])
        assert first.first[group].tolist() == [
            sum(len(values) for values in alone[:number]) for number in range(len(rows))
        ]


def step_of(loss, engine=None, **options):
    model = tiny_model()
    settings = TrainSection(micro_batch_tokens=260, optimizer="adamw")
    return TrainStep(engine or PlainEngine(model, settings, CPU), loss, settings, CPU, **options)


def test_a_row_that_comes_again_takes_no_forward_of_the_base(forwards):
    rows = random_triplets(5, 2)
    step, plain = step_of(LOSS, rows_return=True), step_of(LOSS)
    for _ in range(2):
        reports = [s.run(rows, Denominators.of(rows), 1e-2, rows[0]) for s in (step, plain)]
        assert reports[0].loss == pytest.approx(reports[1].loss, rel=1e-5)
        assert len(forwards) == len(rows)


def test_rows_that_come_once_and_whole_distributions_are_not_kept():
    anchored = LossSection(lambda_preference=0.8, lambda_anchor=0.1)
    assert reference_groups(anchored) == () and reference_groups(LossSection()) == ()
    assert step_of(LOSS)._known is None
    assert step_of(anchored, rows_return=True)._known is None
    collective = PlainEngine(tiny_model(), TrainSection(), CPU)
    collective.collective_forward = True
    assert step_of(LOSS, collective, rows_return=True)._known is None
