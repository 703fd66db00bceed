"""Totals add up over micro-batches and workers, and come back from the tensor between them."""

from __future__ import annotations

from dataclasses import replace

import torch

from causal_core.config import LossSection
from causal_core.loss.objective import TERMS, needs_of
from causal_core.step.totals import StepTotals
from causal_core.trees.needs import BRANCHES
from causal_core.trees.packing import ROWS, cut_micro_batches
from tests.tiny import random_triplets

Z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]])
BRANCH_INDEX = dict(zip(BRANCHES, torch.arange(6).reshape(2, 3).unbind(1), strict=True))


def test_totals_add_up_by_name():
    triplets, needs = random_triplets(12, seed=2, systems=12), needs_of(LossSection())
    micro_batches = cut_micro_batches(triplets, needs, 120, ROWS)
    assert len(micro_batches) > 1
    totals = StepTotals()
    for micro in micro_batches:
        batch = replace(micro.batch, branch_index=BRANCH_INDEX, injection_owner=torch.arange(2))
        totals.add({"robust": torch.tensor(0.5)}, Z, batch)
    count = len(micro_batches)
    assert totals.terms == {**{t.name: 0.0 for t in TERMS}, "robust": 0.5 * count}
    assert (totals.cos_counterfactual, totals.cos_injection) == (count, -count)
    assert totals.nodes == sum(m.batch.nodes for m in micro_batches)
    assert totals.path_tokens == sum(m.batch.path_tokens for m in micro_batches)
    assert totals.padded_nodes == sum(m.batch.input_ids.numel() for m in micro_batches)
    assert totals.nodes < totals.padded_nodes


def test_every_field_comes_back_from_the_sum_over_workers():
    names = [term.name for term in TERMS]
    first, second = (
        StepTotals(
            dict(zip(names, range(n, n + len(names)), strict=True)), *range(n * 10, n * 10 + 5)
        )
        for n in (1, 7)
    )
    found = StepTotals.from_tensor(first.to_tensor() + second.to_tensor())
    assert found.terms == {name: first.terms[name] + second.terms[name] for name in names}
    for name, value in vars(found).items():
        if name != "terms":
            assert value == getattr(first, name) + getattr(second, name), name
    assert StepTotals.from_tensor(StepTotals().to_tensor()) == StepTotals()
