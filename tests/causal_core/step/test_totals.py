"""Totals add up over micro-batches and workers where the computation is, and are read once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from causal_core.config import LossSection, TrainSection
from causal_core.engines.plain import PlainEngine
from causal_core.loss.objective import TERMS, Denominators, needs_of
from causal_core.step.totals import RunningTotals, StepTotals
from causal_core.step.train_step import TrainStep
from causal_core.trees.needs import BRANCHES
from causal_core.trees.packing import FLAT, ROWS, cut_micro_batches
from tests.tiny import ALL_TERMS, random_triplets, tiny_model

Z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]])
BRANCH_INDEX = dict(zip(BRANCHES, torch.arange(6).reshape(2, 3).unbind(1), strict=True))


def test_totals_add_up_by_name():
    triplets, needs = random_triplets(12, seed=2, systems=12), needs_of(LossSection())
    micro_batches = cut_micro_batches(triplets, needs, 120, ROWS)
    assert len(micro_batches) > 1
    running = RunningTotals(torch.device("cpu"))
    for micro in micro_batches:
        batch = replace(micro.batch, branch_index=BRANCH_INDEX, injection_owner=torch.arange(2))
        running.add({"robust": torch.tensor(0.5)}, Z, batch)
    totals, count = StepTotals.from_tensor(running.values), len(micro_batches)
    assert totals.terms == {**{t.name: 0.0 for t in TERMS}, "robust": 0.5 * count}
    assert (totals.cos_counterfactual, totals.cos_injection) == (count, -count)
    assert totals.nodes == sum(m.batch.nodes for m in micro_batches)
    assert totals.path_tokens == sum(m.batch.path_tokens for m in micro_batches)
    assert totals.padded_nodes == sum(m.batch.input_ids.numel() for m in micro_batches)
    assert totals.nodes < totals.padded_nodes


def test_every_field_comes_back_from_the_sum_over_workers():
    count = len(TERMS) + 5
    values = torch.arange(count, dtype=torch.float64)
    found = StepTotals.from_tensor(values + 10 * values)
    assert [*found.terms.values(), *list(vars(found).values())[1:]] == [
        11 * n for n in range(count)
    ]
    assert list(found.terms) == [term.name for term in TERMS]
    assert StepTotals.from_tensor(RunningTotals(torch.device("cpu")).values) == StepTotals()


class Reads(TorchDispatchMode):
    """Counts numbers that are read from tensors: on a GPU, each would wait for all work before."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.nonzero.default,
            torch.ops.aten.is_nonzero.default,
        )
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("packing", [ROWS, FLAT], ids=["rows", "flat"])
@pytest.mark.parametrize("worst_case", [None, 0.5])
def test_a_step_reads_nothing_from_the_device_until_its_gradients_are_there(packing, worst_case):
    losses = LossSection(**ALL_TERMS, worst_case=worst_case)
    engine = PlainEngine(tiny_model(), TrainSection(), torch.device("cpu"))
    step = TrainStep(engine, losses, TrainSection(), torch.device("cpu"), 120, packing=packing)
    triplets = random_triplets(16, seed=1, injections=(0, 3))
    assert len(step.cut(triplets)) > 2
    reads, seen = Reads(), []
    engine.clip = lambda max_norm: seen.append(reads.count) or 1.0
    with reads:
        step.rehearse(triplets)  # to the last gradient
        assert reads.count == 0
        report = step.run(triplets, Denominators.of(triplets), 1e-3, triplets[0])
    assert report.loss != 0.0 and report.nodes > 0 and len(seen) == 1
