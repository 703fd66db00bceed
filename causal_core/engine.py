"""How gradients of several workers become one: `plain` and `ddp` behind one small protocol.

The loop does not know which one it runs on.
"""

from __future__ import annotations

import contextlib
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from causal_core.model import CausalModel, CausalOutput
from causal_core.prefix_tree import TreeBatch


class Engine(Protocol):
    """What the step needs of an engine."""

    model: CausalModel
    rank: int
    world_size: int

    def accumulate(self, batch: TreeBatch, loss_of: LossFunction, last: bool) -> None:
        """Forward, loss and backward of one micro-batch; gradients are summed over workers by
        the time the call with `last=True` returns."""

    def sum_over_workers(self, values: Tensor) -> Tensor:
        """Element-wise sum of a small float64 tensor over all workers."""


class LossFunction(Protocol):
    """Maps a forward's output to the loss (already divided by global denominators)."""

    def __call__(self, output: CausalOutput, batch: TreeBatch) -> Tensor: ...


class PlainEngine:
    """One worker."""

    rank = 0
    world_size = 1

    def __init__(self, model: CausalModel) -> None:
        self.model = model

    def accumulate(self, batch: TreeBatch, loss_of: LossFunction, last: bool) -> None:
        loss_of(self.model(batch), batch).backward()

    def sum_over_workers(self, values: Tensor) -> Tensor:
        return values


class DdpEngine:
    """torch DistributedDataParallel: one all-reduce an optimizer step, after the last backward."""

    def __init__(self, model: CausalModel) -> None:
        self.model = model
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self._device = model.projection.input.weight.device
        on_gpu = self._device.type == "cuda"
        self._wrapped = nn.parallel.DistributedDataParallel(
            model,
            device_ids=[self._device] if on_gpu else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )

    def accumulate(self, batch: TreeBatch, loss_of: LossFunction, last: bool) -> None:
        context = contextlib.nullcontext() if last else self._wrapped.no_sync()
        with context:
            # DDP averages over workers; the loss is a share of a global mean, so it must be summed.
            loss = loss_of(self._wrapped(batch), batch) * self.world_size
            loss.backward()

    def sum_over_workers(self, values: Tensor) -> Tensor:
        summed = values.to(self._device)
        dist.all_reduce(summed)
        return summed.to(values.device)


def build_engine(name: str, model: CausalModel) -> Engine:
    """The engine of a config value; `auto` is ddp where a process group of several runs."""
    workers = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if name == "auto":
        name = "ddp" if workers > 1 else "plain"
    return DdpEngine(model) if name == "ddp" and workers > 1 else PlainEngine(model)


def clip_gradients(parameters: list[nn.Parameter], max_norm: float) -> float:
    """Clips to the global norm and returns the norm before clipping (may be non-finite)."""
    return float(torch.nn.utils.clip_grad_norm_(parameters, max_norm))
