"""What the step and the loop need of an engine: gradients of all workers, clipping, the update.

An engine owns the model and its optimizer; neither the step nor the loop knows which one it runs
on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from causal_core.model.causal_model import CausalModel, CausalOutput
from causal_core.trees.prefix_tree import TreeBatch


class LossFunction(Protocol):
    """Maps a forward's output to the loss (already divided by global denominators)."""

    def __call__(self, output: CausalOutput, batch: TreeBatch) -> Tensor: ...


@dataclass
class EngineState:
    """Everything that training changes, whole and by parameter name, on the CPU.

    The same for every engine and number of workers, so that any of them continues what another
    one began.
    """

    weights: dict[str, Tensor]
    optimizer_tensors: dict[str, Tensor] = field(default_factory=dict)  # `<parameter>//<key>`
    optimizer_values: dict[str, dict[str, Any]] = field(default_factory=dict)


class Engine(Protocol):
    """One worker's part of the optimisation.

    Methods marked *collective* must be called by all workers together.
    """

    model: CausalModel
    rank: int
    world_size: int
    shapes: Mapping[str, torch.Size]  # of all trained parameters, before any sharding
    # Whether a forward, too, needs all workers: then each of them must run the same forwards.
    collective_forward: bool
    # Whether a step's micro-batches before the last one need no other worker.
    local_until_last: bool

    def rounds(self, own: int) -> int:
        """How many micro-batches this worker must run in a step when it has `own` ones of its
        own; what is missing are stand-ins with weight 0. Collective."""

    def accumulate(self, batch: TreeBatch, loss_of: LossFunction, last: bool) -> None:
        """Forward, loss and backward of one micro-batch; gradients are summed over workers by
        the time the call with `last=True` returns. Collective in the last call at the latest."""

    def without_gradient(self) -> list[str]:
        """Trained parameters whose gradient of the global batch is exactly zero. Collective."""

    def clip(self, max_norm: float) -> float:
        """Scales the gradient to a global norm of `max_norm` at most (by the time of `step`) and
        returns the norm before; the same number on all workers, not finite where any of them has
        a gradient that is not. Collective."""

    def step(self, learning_rate: float) -> None:
        """Moves the parameters and clears the gradients. Collective."""

    def discard(self) -> None:
        """Clears the gradients and moves nothing. Collective."""

    def sum_over_workers(self, values: Tensor) -> Tensor:
        """Element-wise sum of a small float64 tensor over all workers. Collective."""

    def weights(self) -> dict[str, Tensor]:
        """Whole trained parameters by name, on the CPU, on all workers. Collective."""

    def state(self) -> EngineState:
        """Whole state to save, on all workers. Collective."""

    def load(self, state: EngineState) -> None:
        """Puts a state back, into the very parameters that are trained. Collective.

        Raises:
            CheckpointError: the optimizer's part does not belong to these parameters; nothing has
                been changed.
        """
