"""What is measured of a way to compute a step: seconds, loss, gradient and most bytes at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import PrinterCallback, TrainerCallback

from benchmarks.peers.models import gradient
from causal_core.memory.tracker import StorageTracker

# Of a forward at most, on both sides, so that peaks can be compared: more fills a processor better
# until padding, or the mask over a packed sequence, costs more than that. A longer one goes alone.
FORWARD_TOKENS = 512
_STEP, _AFTER = "step", "after"


@dataclass
class Measured:
    """One forward and backward over all rows."""

    seconds: float
    loss: float
    gradient: dict[str, Tensor] | None = None
    peak_bytes: int | None = None  # beyond the weights


class Contender(Protocol):
    """A way to compute a step."""

    title: str
    batch: int  # sequences, pairs or rows of a forward

    def run(self, closely: bool = False) -> Measured:
        """A step; `closely`: with its gradient and its peak, which cost time."""
        ...


@dataclass
class Loop:
    """A loop of one's own: a function that leaves gradients and returns the loss."""

    title: str
    model: nn.Module
    step: Callable[[], float]
    batch: int = 0

    def run(self, closely: bool = False) -> Measured:
        self.model.zero_grad(set_to_none=True)
        if not closely:
            begin = time.perf_counter()
            loss = self.step()
            return Measured(time.perf_counter() - begin, loss)
        with tracking(self.model) as tracker:
            tracker.at(_STEP)
            start, begin = tracker.total, time.perf_counter()
            loss = self.step()
            seconds = time.perf_counter() - begin
        peak = tracker.peaks[(_STEP, -1)].total - start
        return Measured(seconds, loss, gradient(self.model), peak)


@dataclass
class Trained:
    """A trainer of transformers or TRL, run by its own `train` for one optimizer step at a time.

    Measured is from the callback at the beginning of the step to the one before the optimizer:
    forwards and backwards of all micro-batches. Collating comes before and does not count; ours
    has it within.
    """

    title: str
    trainer: Any
    batch: int

    def __post_init__(self) -> None:
        self.trainer.remove_callback(PrinterCallback)

    def run(self, closely: bool = False) -> Measured:
        clock = _Clock()
        self.trainer.add_callback(clock)
        try:
            self.trainer.model.zero_grad(set_to_none=True)
            if closely:
                with tracking(self.trainer.model) as clock.tracker:
                    loss = self.trainer.train().training_loss
            else:
                loss = self.trainer.train().training_loss
        finally:
            self.trainer.remove_callback(clock)
        return Measured(clock.seconds, loss, clock.gradient, clock.peak_bytes)


class _Clock(TrainerCallback):
    tracker: StorageTracker | None = None
    seconds: float
    gradient: dict[str, Tensor] | None = None
    peak_bytes: int | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if self.tracker is not None:
            self.tracker.at(_STEP)
            self._start = self.tracker.total
        self._begin = time.perf_counter()

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: nn.Module, **more: Any
    ) -> None:
        self.seconds = time.perf_counter() - self._begin
        if self.tracker is not None:
            self.peak_bytes = self.tracker.peaks[(_STEP, -1)].total - self._start
            self.tracker.at(_AFTER)
            self.gradient = gradient(model)


def tracking(model: nn.Module) -> StorageTracker:
    """A tracker that knows the model's weights."""
    tracker = StorageTracker("cpu")
    tensors: Iterable[Tensor] = [*model.parameters(), *model.buffers()]
    for tensor in tensors:
        tracker.assign(tensor.detach(), "base_weights")
    return tracker


def one_step(rows: int, batch: int) -> dict[str, Any]:
    """Training arguments of transformers for one step over `rows`, in float32 and without what
    costs time beside it; the learning rate is 0, so that every repeat computes the same."""
    if rows % batch:
        raise ValueError(f"{rows} rows in forwards of {batch} are not one step of equal forwards")
    return {
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": rows // batch,
        "max_steps": 1,
        "learning_rate": 0.0,
        "weight_decay": 0.0,
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
        "bf16": False,
        "gradient_checkpointing": False,  # ours recomputes nothing either
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }


def at_a_time(count: int, tokens: int) -> int:
    """The most of `count` things of so many tokens that equal forwards take at once."""
    fits = max(1, FORWARD_TOKENS // tokens)
    return max(n for n in range(1, min(count, fits) + 1) if count % n == 0)
