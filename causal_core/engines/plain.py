"""One worker, whole parameters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from causal_core.config import TrainSection
from causal_core.engines.base import EngineState, LossFunction
from causal_core.engines.optimizer import build_optimizer, load_optimizer_state, optimizer_state
from causal_core.model.causal_model import CausalModel
from causal_core.trees.prefix_tree import TreeBatch


class PlainEngine:
    """Implements `causal_core.engines.base.Engine` for one worker; base of the engines that keep
    whole parameters on each worker."""

    rank = 0
    world_size = 1
    collective_forward = False
    local_until_last = True

    def __init__(self, model: CausalModel, train: TrainSection, device: torch.device) -> None:
        self.model = model
        self.parameters = model.trainable_parameters()
        self.shapes: Mapping[str, torch.Size] = {
            name: p.shape for name, p in self.parameters.items()
        }
        self.optimizer = build_optimizer(self.parameters, train, device)

    def rounds(self, own: int) -> int:
        return max(1, own)

    def accumulate(self, batch: TreeBatch, loss_of: LossFunction, last: bool) -> None:
        loss_of(self.model(batch), batch).backward()

    def without_gradient(self) -> list[str]:
        return [n for n, p in self.parameters.items() if p.grad is None or not p.grad.any()]

    def clip(self, max_norm: float) -> float:
        # The gradients of all workers are the same by now, and so is their norm.
        return float(torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), max_norm))

    def step(self, learning_rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.discard()

    def discard(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def sum_over_workers(self, values: Tensor) -> Tensor:
        return values

    def weights(self) -> dict[str, Tensor]:
        return {name: p.detach().cpu().contiguous() for name, p in self.parameters.items()}

    def state(self) -> EngineState:
        return EngineState(self.weights(), *optimizer_state(self.optimizer, self.parameters))

    def load(self, state: EngineState) -> None:
        load_optimizer_state(
            self.optimizer, self.parameters, state.optimizer_tensors, state.optimizer_values
        )
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state.weights[name])
