"""The training loop of one worker: data position, steps, validation, checkpoints, metrics.

It sees the world through a `RunContext` and the optimisation through a `TrainStep`; it knows
neither Ray nor the engine.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from causal_core.checkpoints.checkpoint import (
    TrainerState,
    checkpoint_name,
    copy_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from causal_core.config import Config
from causal_core.device import peak_memory_bytes
from causal_core.engines.base import EngineState
from causal_core.errors import RunFailedError, StorageError
from causal_core.evaluation.rows import evaluate_rows
from causal_core.evaluation.scoring import Scores, score_triplets
from causal_core.loss.objective import is_contrastive
from causal_core.memory.measure import MemoryMeter
from causal_core.model.causal_model import count_parameters
from causal_core.run.context import RunContext
from causal_core.run.prefetch import Prefetcher
from causal_core.run.run_log import RunLog
from causal_core.run.schedule import learning_rate
from causal_core.run.selection import Best
from causal_core.run.session import Session, open_session
from causal_core.step.random_state import seed_step
from causal_core.step.train_step import StepReport, TrainStep
from causal_core.tokens.dataset import TripletDataset
from causal_core.tokens.triplet import TripletTokens
from causal_core.trees.needs import BRANCHES

log = logging.getLogger(__name__)


def train(config: Config, context: RunContext) -> dict[str, Any]:
    """Runs or resumes a training run to its end and returns its summary.

    Raises:
        UserError: the configuration, data or checkpoint cannot be used.
        RunFailedError: too many non-finite steps in a row.
    """
    begin = time.monotonic()
    session = open_session(config, context.device)
    return _Loop(config, context, session, opening_seconds=time.monotonic() - begin).run()


@dataclass
class _Loop:
    config: Config
    context: RunContext
    session: Session
    opening_seconds: float = 0.0
    best: Best = field(default_factory=Best)
    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    first_step: int = 0  # where this session began
    _told_memory: bool = False
    started: float = field(default_factory=time.monotonic)

    def run(self) -> dict[str, Any]:
        config = self.config
        self._meter = MemoryMeter(config, self.session.engine, self.context.device)
        step = TrainStep(
            self.session.engine,
            config.loss,
            config.train,
            self.context.device,
            self.session.token_budget,
            self._meter.saw,
            self.session.packing,
        )
        self._restore()
        plan = self.session.plan
        self._batches = Prefetcher(
            self.session.data.train,
            lambda number: plan.batch(number, config.run.seed),
            step.cut,
            self.context.rank,
            self.context.world_size,
            plan.total_steps,
        )
        with contextlib.ExitStack() as opened:
            opened.callback(self._batches.close)
            run_log = None
            if self.context.rank == 0:
                run_log = RunLog(
                    self.context.directory, self.step, config.logging, self.context.trackers
                )
                opened.callback(run_log.close)
                run_log.performance(self.step, {"opening_seconds": self.opening_seconds})
            last_validation = self._steps(step, run_log)
        return self._summary(last_validation)

    def _steps(self, step: TrainStep, run_log: RunLog | None) -> dict[str, float]:
        """Steps until the run is over or asked to stop; the last validation's metrics."""
        last_validation: dict[str, float] = {}
        stopped = False
        while not stopped and not self._is_over():
            report = self._one_step(step, run_log)
            self._watch_skipped(report)
            stopped = self._stop_requested()
            leaving = self.context.save_requested()
            save, validate = self._due()
            if validate:
                last_validation = self._validate(run_log)
            if save or stopped or leaving:
                self._save(report, last_validation if validate else {}, run_log)
        return last_validation

    def _is_over(self) -> bool:
        return self.step >= self.session.plan.total_steps or self.best.exhausted(
            self.session.selection
        )

    def _stop_requested(self) -> bool:
        """Whether any worker was asked to stop; the same answer on all of them."""
        asked = torch.tensor([float(self.context.stop_requested(self.step))], dtype=torch.float64)
        return bool(self.session.engine.sum_over_workers(asked)[0] > 0)

    def _one_step(self, step: TrainStep, run_log: RunLog | None) -> StepReport:
        plan = self.session.plan
        begin = time.perf_counter()
        ready = self._batches.get(self.step)
        batch = ready.triplets
        rate = self._learning_rate(self.step)
        seed_step(self.config.run.seed, self.step, self.context.rank)
        with self._meter.step():
            report = step.run(ready.mine, ready.denominators, rate, batch[0], ready.micro_batches)
        if not report.applied:
            log.warning(
                "step %d: loss %s, gradient norm %s: not finite, the optimizer did not move; "
                "triplets: %s",
                self.step + 1, report.loss, report.grad_norm, _names(batch),
            )  # fmt: skip
            self._suspects = _names(batch)
        epoch = plan.epoch_of(self.step)
        self.step += 1
        if run_log is not None:
            seconds = time.perf_counter() - begin
            record = {"epoch": epoch, "samples": plan.samples_after(self.step),
                      "learning_rate": rate, **report.metrics()}  # fmt: skip
            if not report.applied:
                record["skipped"] = True
            run_log.metrics("train", self.step, record)
            run_log.performance(
                self.step,
                {
                    "seconds": seconds,
                    "triplets_per_second": len(batch) / seconds,
                    "nodes_per_second": report.nodes / seconds,
                    "sharing": report.path_tokens / max(1, report.nodes),
                    "padding": 1 - report.nodes / max(1, report.padded_nodes),
                    "peak_memory_bytes": peak_memory_bytes(self.context.device),
                },
            )
        return report

    def _learning_rate(self, step: int) -> float:
        train = self.config.train
        return learning_rate(
            step,
            self.session.plan.total_steps,
            train.learning_rate,
            train.warmup_ratio,
            train.schedule,
        )

    def _watch_skipped(self, report: StepReport) -> None:
        if report.applied:
            self.skipped_in_a_row = 0
            return
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row > self.config.train.max_skipped:
            raise RunFailedError(
                f"{self.skipped_in_a_row} optimizer steps in a row were not finite (step "
                f"{self.step}; train.max_skipped={self.config.train.max_skipped}). Lower "
                f"train.learning_rate or look at the last batch: {self._suspects}"
            )

    def _due(self) -> tuple[bool, bool]:
        """Whether to save and whether to validate after this step."""
        plan, every = self.session.plan, self.config.checkpoint.every_steps
        save = (
            self.step % every == 0 or plan.is_epoch_end(self.step) or self.step == plan.total_steps
        )
        extra = self.config.validation.every_steps
        return save, save or (extra is not None and self.step % extra == 0)

    def _validate(self, run_log: RunLog | None) -> dict[str, float]:
        dataset = self.session.data.validation
        if dataset is None:
            return {}
        scores = self._scores_of_all_workers([dataset.tokens(i) for i in range(len(dataset))])
        metrics = scores.summary(is_contrastive(self.config.loss))
        if self.session.selection.metric == "attack_success":
            metrics["attack_success"] = self._attack_success(dataset)
        if run_log is not None:
            run_log.metrics("validation", self.step, metrics)
        return metrics

    def _rows(self, count: int) -> range:
        """The validation rows of this worker: all, where a forward takes all workers together."""
        if self.session.engine.collective_forward:
            return range(count)
        return range(self.context.rank, count, self.context.world_size)

    def _attack_success(self, dataset: TripletDataset) -> float:
        """Share of validation attacks that succeed, by greedy answers; every worker its rows."""
        rows = evaluate_rows(
            self.session.engine.model,
            self.session.data.encoder,
            dataset,
            self._rows(len(dataset)),
            self.config.evaluation,
            self.context.device,
            head_trained=False,
        )
        judged = [row.attack_succeeded for row in rows if row.attack_succeeded is not None]
        counts = torch.tensor([float(sum(judged)), float(len(judged))], dtype=torch.float64)
        successes, attacks = self.session.engine.sum_over_workers(counts).tolist()
        return successes / max(1.0, attacks)

    def _scores_of_all_workers(self, triplets: list[TripletTokens]) -> Scores:
        """Every worker scores its rows; a sum over workers gives all rows to all of them."""
        rows, engine = self._rows(len(triplets)), self.session.engine
        mine = [triplets[i] for i in rows]
        head_trained = is_contrastive(self.config.loss)
        budget = self.session.token_budget
        own = score_triplets(engine.model, mine, self.context.device, budget, head_trained)
        if rows == range(len(triplets)):
            return own
        columns = own.__dict__
        width = self.session.engine.model.projection.input.in_features
        merged: dict[str, Any] = {}
        for name, values in columns.items():
            branches = len(BRANCHES) if head_trained else 1
            vectors = name in ("z", "pooled")
            shape = (len(triplets), branches, width) if vectors else (len(triplets),)
            full = torch.zeros(shape, dtype=torch.float64)
            if mine:
                full[rows.start :: rows.step] = torch.as_tensor(values, dtype=torch.float64)
            merged[name] = engine.sum_over_workers(full).numpy().astype(values.dtype)
        return Scores(**merged)

    def _save(
        self, report: StepReport, validation: dict[str, float], run_log: RunLog | None
    ) -> None:
        begin = time.perf_counter()
        is_best = self.best.update(self.step, validation, self.session.selection)
        is_best = is_best or self.session.data.validation is None
        metrics = {**report.metrics(), **{f"validation_{k}": v for k, v in validation.items()}}
        name = checkpoint_name(self.step)
        trained = self.session.engine.state()  # gathered by all workers, written by one
        directory = None
        try:
            if self.context.rank == 0:
                directory = self._write_checkpoint(trained, metrics)
                if is_best:
                    copy_checkpoint(directory, self.context.directory / "best")
            self.context.report({"step": self.step, **metrics}, directory, name)
        except BaseException as error:
            if directory is not None:
                shutil.rmtree(directory, ignore_errors=True)
            if not isinstance(error, OSError):
                raise
            raise StorageError(
                f"the checkpoint of step {self.step} could not be written: {error}. Earlier "
                f"checkpoints in {self.context.store.location} are untouched; free or repair the "
                "storage and run the same command again"
            ) from error
        if run_log is not None:
            seconds = time.perf_counter() - begin
            run_log.performance(self.step, {"save_seconds": seconds, **self._memory()})

    def _memory(self) -> dict[str, int]:
        """Memory planned and measured, once a session: to plan for the real batches takes a second.

        Rank 0 says it at its first checkpoint, so that trackers show it while the run goes on.
        """
        if self._told_memory:
            return {}
        self._told_memory = True
        found = self._meter.summary()
        names = {"predicted_bytes": "planned", "measured_bytes": "measured"}
        return {f"{names[key]}_memory_bytes": found[key] for key in names if key in found}

    def _memory_summary(self) -> dict[str, Any]:
        probe = self.session.calibration
        return self._meter.summary() | ({"probe": probe.to_dict()} if probe is not None else {})

    def _write_checkpoint(self, trained: EngineState, metrics: dict[str, float]) -> Path:
        """A whole checkpoint in a local temporary directory."""
        config, session = self.config, self.session
        state = TrainerState(
            step=self.step,
            samples=session.plan.samples_after(self.step),
            seed=config.run.seed,
            learning_rate=self._learning_rate(self.step - 1),
            total_steps=session.plan.total_steps,
            skipped=self.skipped,
            skipped_in_a_row=self.skipped_in_a_row,
            best=self.best.to_dict(),
            data_fingerprint=session.data.fingerprint(),
            base_fingerprint=session.base_fingerprint,
            config_fingerprint=config.fingerprint(),
        )
        directory = Path(tempfile.mkdtemp(prefix="causal-checkpoint-"))
        try:
            save_checkpoint(
                directory,
                session.engine,
                trained,
                config,
                session.data.encoder.tokenizer,
                state,
                metrics,
            )
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        return directory

    def _restore(self) -> None:
        session = self.session
        with self.context.store.newest_whole() as newest:
            if newest is None:
                return
            state = load_checkpoint(
                newest,
                session.engine,
                self.config,
                session.data.fingerprint(),
                session.base_fingerprint,
            )
            log.info("resumed from %s", newest.name)
        self.step = session.plan.step_of(state.samples)
        self.skipped = state.skipped
        self.skipped_in_a_row = state.skipped_in_a_row
        self.best = Best.from_dict(state.best)
        self.first_step = self.step

    def _summary(self, validation: dict[str, float]) -> dict[str, Any]:
        plan = self.session.plan
        return {
            "steps": self.step,
            "steps_now": self.step - self.first_step,  # by this session, the rest by earlier ones
            "planned_steps": plan.total_steps,
            "finished": self._is_over(),
            "stopped_early": self._is_over() and self.step < plan.total_steps,
            "samples": plan.samples_after(self.step),
            "epochs": self.config.train.epochs,
            "skipped_steps": self.skipped,
            "best_step": self.best.step,
            "validation": validation,
            "parameters": count_parameters(self.session.engine.model),
            "workers": self.context.world_size,
            "seconds": time.monotonic() - self.started,
            "peak_memory_bytes": peak_memory_bytes(self.context.device),
            "memory": self._memory_summary(),
        }


def _names(batch: list[TripletTokens]) -> str:
    return ", ".join(repr(t.id) for t in batch)
