"""The memory that a run really takes, beside what was planned for it.

On a GPU the allocator counts. CPU tensors have no such counter, so the storages of the first two
optimizer steps of a session are followed instead (two: the second holds what the first left).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from causal_core.amounts import gib
from causal_core.config import Config
from causal_core.engines.base import Engine
from causal_core.errors import UserError
from causal_core.memory.plan import MemoryPlan, predict
from causal_core.memory.shapes import BatchShape, candidates
from causal_core.memory.tracker import StorageTracker
from causal_core.trees.prefix_tree import TreeBatch

log = logging.getLogger(__name__)

FOLLOWED_STEPS = 2
TOLERANCE = 0.10  # of the measurement: beyond it the plan is called off


class MemoryMeter:
    """Watches one worker's optimizer steps."""

    def __init__(self, config: Config, engine: Engine, device: torch.device) -> None:
        self._config, self._engine, self._device = config, engine, device
        self._shapes: set[BatchShape] = set()
        self._in_step = self._most_in_step = self._steps = 0
        self._tracker: StorageTracker | None = None
        # Collective engines move tensors where no dispatch mode sees it.
        if device.type == "cpu" and engine.world_size == 1:
            self._tracker = StorageTracker("cpu")

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Around one optimizer step."""
        self._in_step = 0
        followed = self._tracker if self._steps < FOLLOWED_STEPS else None
        if followed is not None and not self._steps:
            for tensor in self._held():
                followed.assign(tensor, "base_weights")
            followed.at("step")
        with followed or contextlib.nullcontext():
            yield
        self._steps += 1
        if self._device.type == "cuda" or followed is not None:
            self._most_in_step = max(self._most_in_step, self._in_step)

    def saw(self, batch: TreeBatch) -> None:
        """A micro-batch is about to run."""
        self._in_step += 1
        if self._device.type == "cuda" or (self._tracker and self._steps < FOLLOWED_STEPS):
            self._shapes.add(BatchShape.of(batch))
        if self._tracker is not None and self._steps < FOLLOWED_STEPS:
            for value in vars(batch).values():
                if isinstance(value, Tensor):
                    self._tracker.assign(value, "inputs")

    def summary(self) -> dict[str, Any]:
        """Measured and predicted peak of *allocated* memory; empty where nothing was measured."""
        measured = self._measured()
        if not self._shapes or measured is None:
            return {}
        found: dict[str, Any] = {"kind": "allocated", "measured_bytes": measured}
        if self._device.type == "cuda":
            found["measured_reserved_bytes"] = int(torch.cuda.max_memory_reserved(self._device))
        plan = self._plan()
        if plan is None:
            return found
        shape = plan.shape
        on_gpu = self._device.type == "cuda"
        predicted = plan.peak_bytes if on_gpu else plan.step_bytes
        error = predicted / measured - 1
        found |= {
            "predicted_bytes": predicted,
            "error": error,
            "covers": "the run" if on_gpu else f"optimizer steps, the first {FOLLOWED_STEPS}",
            "micro_batch": {"rows": shape.rows, "nodes": shape.nodes, "labels": shape.positions},
        }
        if abs(error) > TOLERANCE:
            log.warning(
                "memory was planned to peak at %s (allocated) and peaked at %s: %+.0f %%. The plan "
                "of this model is off; set train.micro_batch_tokens with that margin",
                gib(predicted), gib(measured), 100 * error,
            )  # fmt: skip
        return found

    def in_brief(self) -> dict[str, int]:
        """Both peaks of `summary`, where there are any, under the names of the run log."""
        found = self.summary()
        names = {"predicted_bytes": "planned", "measured_bytes": "measured"}
        return {f"{names[key]}_memory_bytes": found[key] for key in names if key in found}

    def rehearsed(self) -> tuple[MemoryPlan, int] | None:
        """The plan and the measured peak, *allocated*, of what was watched so far."""
        measured = self._measured()
        plan = self._plan() if self._shapes and measured is not None else None
        return None if plan is None or measured is None else (plan, measured)

    def _measured(self) -> int | None:
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        return self._tracker.peak if self._tracker is not None and self._steps else None

    def _plan(self) -> MemoryPlan | None:
        """The plan of the micro-batch that needs most of those that ran."""
        try:
            plans = [
                predict(
                    self._config,
                    world_size=self._engine.world_size,
                    device="cuda" if self._device.type == "cuda" else "cpu",
                    shape=shape,
                    micro_batches=min(2, max(1, self._most_in_step)),
                )
                for shape in candidates(self._shapes)
            ]
            return max(plans, key=lambda plan: plan.step_bytes)
        except (UserError, RuntimeError, TypeError, AttributeError) as error:
            # A plan that cannot be made (an unusual architecture) must not end a run that worked;
            # the trace says whether it was the model or a defect of the planner.
            log.warning("the memory of this model cannot be planned: %s", error, exc_info=error)
            return None

    def _held(self) -> Iterator[Tensor]:
        """What is there before the first step: model, quantisation state, optimizer state."""
        model = self._engine.model
        for parameter in model.parameters():
            yield parameter.data
            state = getattr(parameter, "quant_state", None)
            if state is not None:
                nested = [state.state2.absmax, state.state2.code] if state.nested else []
                yield from (
                    t for t in (state.absmax, state.code, state.offset, *nested)
                    if isinstance(t, Tensor)
                )  # fmt: skip
        yield from model.buffers()
        optimizer = getattr(self._engine, "optimizer", None)
        for values in optimizer.state.values() if optimizer is not None else ():
            yield from (value for value in values.values() if isinstance(value, Tensor))
