"""A micro-batch goes to its device as it is, and by one copy.

1. Staged and moved, every tensor has its value, type and shape; nothing else changes.
2. A batch is copied by one operation, whatever it holds; on its own device by none.
3. What the training thread gets from `TrainStep.cut` is staged already.
"""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from causal_core.config import LossSection, TrainSection
from causal_core.engines.plain import PlainEngine
from causal_core.loss.objective import needs_of
from causal_core.step.train_step import TrainStep
from causal_core.trees.packing import FLAT, ROWS, cut_micro_batches
from causal_core.trees.staging import on_device, tensors_of
from tests.tiny import ALL_TERMS, random_triplets, tiny_model

LOSS = LossSection(**ALL_TERMS)
META = torch.device("meta")  # stands for a device with memory of its own
CPU = torch.device("cpu")
BOTH_LAYOUTS = pytest.mark.parametrize("packing", [ROWS, FLAT], ids=["rows", "flat"])
COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


def micro_batch(packing):
    triplets = random_triplets(6, seed=1, injections=(0, 3))
    return cut_micro_batches(triplets, needs_of(LOSS), 10_000, packing)[0].batch


class Copies(TorchDispatchMode):
    """Counts copies to the meta device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.count += func in COPIES and out.device.type == "meta"
        return out


@BOTH_LAYOUTS
def test_what_is_staged_and_moved_is_the_same_batch(packing):
    batch = micro_batch(packing)
    staged = batch.staged(META)
    back = staged.to(CPU)  # the way of `to`, with a buffer that is there already
    for other in (staged, back):
        assert (other.nodes, other.triplets, other.blocks) == (
            batch.nodes, batch.triplets, batch.blocks,
        )  # fmt: skip
        assert list(other.branch_index) == list(batch.branch_index)
        for found, expected in zip(tensors_of(other), tensors_of(batch), strict=False):
            assert torch.equal(found, expected) and found.dtype == expected.dtype
    assert len({t.untyped_storage().data_ptr() for t in tensors_of(staged)}) == 1


@BOTH_LAYOUTS
def test_a_batch_is_one_copy(packing):
    batch = micro_batch(packing)
    assert len(tensors_of(batch)) > 30
    with Copies() as copies:
        there = batch.staged(META).to(META)
    assert copies.count == 1
    assert {t.device.type for t in tensors_of(there)} == {"meta"}
    assert [t.shape for t in tensors_of(there)] == [t.shape for t in tensors_of(batch)]
    assert there.to(META) is there and batch.to(CPU) is batch
    with Copies() as copies:
        on_device(batch.labels, META)
        assert on_device(there.labels, META) is there.labels
    assert copies.count == 1


def test_the_training_thread_gets_what_is_staged():
    model, triplets = tiny_model(), random_triplets(4, seed=1)
    step = TrainStep(PlainEngine(model, TrainSection(), CPU), LOSS, TrainSection(), META, 500)
    assert all(micro.batch.buffer is not None for micro in step.cut(triplets))
    step = TrainStep(PlainEngine(model, TrainSection(), CPU), LOSS, TrainSection(), CPU, 500)
    assert all(micro.batch.buffer is None for micro in step.cut(triplets))
