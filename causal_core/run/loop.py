"""The training loop of one worker: restore, then step, validate and save until the run is over.

It sees the world through a `RunContext` and the optimisation through a `TrainStep`; it knows
neither Ray nor the engine. What belongs to a single concern has a room of its own: `session` opens
what a run needs, `saving` restores and saves, `validation` judges, `run_log` writes.
"""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass
from typing import Any

import torch

from causal_core.config import Config
from causal_core.device import peak_memory_bytes, varying_operations_refused
from causal_core.memory.measure import MemoryMeter
from causal_core.model.causal_model import count_parameters
from causal_core.run.context import RunContext
from causal_core.run.position import Position, names_of
from causal_core.run.prefetch import Prefetcher
from causal_core.run.run_log import RunLog, open_run_log
from causal_core.run.saving import Saving
from causal_core.run.schedule import learning_rate
from causal_core.run.session import Session, open_session
from causal_core.run.validation import Validation
from causal_core.step.random_state import seed_step
from causal_core.step.train_step import StepReport, TrainStep

log = logging.getLogger(__name__)


def train(config: Config, context: RunContext) -> dict[str, Any]:
    """Runs or resumes a training run to its end and returns its summary.

    Raises:
        UserError: the configuration, data or checkpoint cannot be used.
        RunFailedError: too many non-finite steps in a row.
    """
    begin = time.monotonic()
    session = open_session(config, context.device)
    opened = time.monotonic()
    meter = MemoryMeter(config, session.engine, context.device)
    step = TrainStep(
        session.engine,
        config.loss,
        config.train,
        context.device,
        session.token_budget,
        meter.saw,
        session.packing,
        rows_return=session.plan.returns and not config.data.fresh_attacks,
    )
    saving = Saving(config, session, context)
    position = saving.restore()
    first = position.step
    batches = Prefetcher(
        lambda number: session.triplets_of(number, config.run.seed),
        step.cut,
        context.rank,
        context.world_size,
        session.plan.total_steps,
    )
    with (
        varying_operations_refused(),
        contextlib.closing(batches),
        open_run_log(context, config.logging, first) as run_log,
    ):
        run_log.performance(first, {"opening_seconds": opened - begin})
        validation = Validation(config, session, context)
        loop = _Loop(
            config, context, session, meter, step, batches, saving, validation, run_log, position
        )
        last_validation = loop.run()
    probe = {"probe": session.calibration.to_dict()} if session.calibration is not None else {}
    return {
        "steps": position.step,
        "steps_now": position.step - first,  # by this session, the rest by earlier ones
        "planned_steps": session.plan.total_steps,
        "finished": loop.is_over(),
        "stopped_early": loop.is_over() and position.step < session.plan.total_steps,
        "samples": session.plan.samples_after(position.step),
        "epochs": config.train.epochs,
        "skipped_steps": position.skipped,
        "best_step": position.best.step,
        "validation": last_validation,
        "parameters": count_parameters(session.engine.model),
        "workers": context.world_size,
        "seconds": time.monotonic() - opened,
        "peak_memory_bytes": peak_memory_bytes(context.device),
        "memory": meter.summary() | probe,
    }


@dataclass
class _Loop:
    config: Config
    context: RunContext
    session: Session
    meter: MemoryMeter
    train_step: TrainStep
    batches: Prefetcher
    saving: Saving
    validation: Validation
    run_log: RunLog
    position: Position

    def run(self) -> dict[str, float]:
        """Steps until the run is over or asked to stop; the last validation's metrics."""
        last_validation: dict[str, float] = {}
        told_memory = stopped = False
        while not stopped and not self.is_over():
            report = self._step()
            stopped = self._stop_requested()
            leaving = self.context.save_requested()
            save, validate = self._due()
            validation = self._validate() if validate else {}
            last_validation = validation or last_validation
            if save or stopped or leaving:
                self._save(report, validation, with_memory=not told_memory)
                told_memory = True
        return last_validation

    def is_over(self) -> bool:
        """Whether all steps are done, or early stopping ends the run here."""
        done = self.position.step >= self.session.plan.total_steps
        return done or self.position.best.exhausted(self.session.selection)

    def _step(self) -> StepReport:
        position, plan = self.position, self.session.plan
        begin = time.perf_counter()
        ready = self.batches.get(position.step)
        batch = ready.triplets
        rate = learning_rate(position.step, plan.total_steps, self.config.train)
        seed_step(self.config.run.seed, position.step, self.context.rank)
        with self.meter.step():
            report = self.train_step.run(
                ready.mine, ready.denominators, rate, batch[0], ready.micro_batches
            )
        number = position.step + 1
        if not report.applied:
            log.warning(
                "step %d: loss %s, gradient norm %s: not finite, the optimizer did not move; "
                "triplets: %s", number, report.loss, report.grad_norm, names_of(batch),
            )  # fmt: skip
        about = {
            "epoch": plan.epoch_of(position.step),
            "samples": plan.samples_after(number),
            "learning_rate": rate,
        }
        seconds = time.perf_counter() - begin
        peak = peak_memory_bytes(self.context.device)
        self.run_log.step(number, about, report, len(batch), seconds, peak)
        position.advance(report.applied, batch, self.config.train.max_skipped)
        return report

    def _stop_requested(self) -> bool:
        """Whether any worker was asked to stop; the same answer on all of them."""
        mine = float(self.context.stop_requested(self.position.step))
        asked = torch.tensor([mine], dtype=torch.float64)
        return bool(self.session.engine.sum_over_workers(asked)[0] > 0)

    def _due(self) -> tuple[bool, bool]:
        """Whether to save and whether to validate after this step."""
        step, plan = self.position.step, self.session.plan
        ends = plan.is_epoch_end(step) or step == plan.total_steps
        save = ends or step % self.config.checkpoint.every_steps == 0
        asked = self.config.validation
        extra = asked.every_steps is not None and step % asked.every_steps == 0
        return save, ends or extra or (save and asked.at_checkpoints)

    def _validate(self) -> dict[str, float]:
        metrics = self.validation.metrics()
        if metrics:
            self.run_log.metrics("validation", self.position.step, metrics)
        return metrics

    def _save(self, report: StepReport, validation: dict[str, float], with_memory: bool) -> None:
        begin = time.perf_counter()
        self.saving.save(self.position, report.metrics(), validation)
        if self.context.rank == 0:
            seconds = time.perf_counter() - begin
            # Planning for the batches that came takes a second: once, for trackers to show it.
            memory = self.meter.in_brief() if with_memory else {}
            self.run_log.performance(self.position.step, {"save_seconds": seconds, **memory})
