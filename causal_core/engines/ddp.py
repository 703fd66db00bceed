"""torch DistributedDataParallel: whole parameters on each worker, one all-reduce per step."""

from __future__ import annotations

import contextlib

import torch
import torch.distributed as dist
from torch import Tensor, nn

from causal_core.config import TrainSection
from causal_core.engines.base import LossFunction
from causal_core.engines.plain import PlainEngine
from causal_core.model.causal_model import CausalModel
from causal_core.trees.prefix_tree import TreeBatch


class DdpEngine(PlainEngine):
    """Gradients are summed after the last backward of a step, so workers may run different
    numbers of micro-batches."""

    def __init__(self, model: CausalModel, train: TrainSection, device: torch.device) -> None:
        super().__init__(model, train, device)
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self._device = device
        self._begin_as_rank_0()
        self._wrapped = nn.parallel.DistributedDataParallel(
            model,
            device_ids=[device] if device.type == "cuda" else None,
            forward_sync_buffers=False,
            init_sync=False,  # it would send the frozen base to every worker, which has read it
            gradient_as_bucket_view=True,
        )

    @torch.no_grad()
    def _begin_as_rank_0(self) -> None:
        """Gives all workers rank 0's trained weights: the last bit of a fresh adapter may be
        another on another processor."""
        kinds = {parameter.dtype for parameter in self.parameters.values()}
        for kind in sorted(kinds, key=str):
            same = [p for p in self.parameters.values() if p.dtype == kind]
            flat = torch.cat([parameter.flatten() for parameter in same])
            dist.broadcast(flat, src=0)
            parts = flat.split([parameter.numel() for parameter in same])
            for parameter, part in zip(same, parts, strict=True):
                parameter.copy_(part.view_as(parameter))

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
