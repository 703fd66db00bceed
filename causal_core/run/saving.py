"""Where a run continues from, and the checkpoints that it leaves on its way."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from causal_core.checkpoints.checkpoint import (
    check_fits,
    checkpoint_name,
    copy_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from causal_core.checkpoints.state import TrainerState
from causal_core.config import Config
from causal_core.engines.base import EngineState
from causal_core.errors import DamagedCheckpointError, StorageRefusedError
from causal_core.files import BEST
from causal_core.run.context import RunContext
from causal_core.run.position import Position
from causal_core.run.schedule import learning_rate
from causal_core.run.selection import Best
from causal_core.run.session import Session
from causal_core.visible_text import shown

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Saving:
    """Restores a run and saves it at boundaries between optimizer steps; all workers call it."""

    config: Config
    session: Session
    context: RunContext

    def restore(self) -> Position:
        """Loads the newest whole checkpoint, if there is one, and returns how far it had come."""
        session = self.session
        with self.context.store.newest_whole(self._check_fits) as newest:
            if newest is None:
                return Position()
            state = load_checkpoint(
                newest,
                session.engine,
                self.config,
                session.data.fingerprint(),
                session.base_fingerprint,
            )
            log.info("resumed from %s", newest.name)
        return Position(
            step=state.step,
            skipped=state.skipped,
            skipped_in_a_row=state.skipped_in_a_row,
            best=Best.from_dict(state.best),
        )

    def _check_fits(self, directory: Path) -> None:
        """Refuses a checkpoint that cannot be one of this run, before anything of it is loaded.

        Raises:
            ForeignCheckpointError: it is of another run.
            DamagedCheckpointError: it was altered.
        """
        session, plan = self.session, self.session.plan
        saved = check_fits(
            directory,
            session.engine,
            self.config,
            session.data.fingerprint(),
            session.base_fingerprint,
        )
        name = shown(directory.name)
        if saved.total_steps != plan.total_steps:
            raise DamagedCheckpointError(
                f"{name}: its trainer state says {saved.total_steps} steps in all, and its run has "
                f"{plan.total_steps}: it was altered"
            )
        if plan.samples_after(saved.step) != saved.samples:
            raise DamagedCheckpointError(
                f"{name}: its trainer state says step {saved.step} and {saved.samples} rows, but "
                f"that step ends after {plan.samples_after(saved.step)}: it was altered"
            )
        rate = learning_rate(saved.step - 1, plan.total_steps, self.config.train)
        # The same function of the step; another machine's cosine may end in another bit.
        if abs(saved.learning_rate - rate) > 1e-6 * self.config.train.learning_rate:
            raise DamagedCheckpointError(
                f"{name}: its trainer state says learning rate {saved.learning_rate:g} at step "
                f"{saved.step}, where the schedule has {rate:g}: it was altered"
            )

    def save(
        self, position: Position, training: Mapping[str, float], validation: Mapping[str, float]
    ) -> None:
        """Saves the state after `position.step` steps, and once more as the best if it is.

        Args:
            position: Its best checkpoint is brought up to date.
            training: Metrics of the last step.
            validation: Metrics at this step; empty where it was not validated.

        Raises:
            StorageRefusedError: the checkpoint could not be written. Earlier ones are untouched.
        """
        is_best = position.best.update(position.step, validation, self.session.selection)
        is_best = is_best or self.session.data.validation is None
        metrics = {**training, **{f"validation_{k}": v for k, v in validation.items()}}
        trained = self.session.engine.state()  # gathered by all workers, written by one
        directory = None
        try:
            if self.context.rank == 0:
                directory = self._written(position, trained, metrics)
                if is_best:
                    copy_checkpoint(directory, self.context.directory / BEST)
            name = checkpoint_name(position.step)
            self.context.report({"step": position.step, **metrics}, directory, name)
        except BaseException as error:
            if directory is not None:
                shutil.rmtree(directory, ignore_errors=True)
            if not isinstance(error, OSError | SafetensorError):
                raise
            raise StorageRefusedError(
                f"the checkpoint of step {position.step} could not be written: {error}. Earlier "
                f"checkpoints in {self.context.store.location} are untouched; make room there, in "
                f"{self.context.directory} and in {tempfile.gettempdir()} (checkpoint.storage, "
                "run.dir and $TMPDIR choose other places) and run the same command again"
            ) from error

    def _written(
        self, position: Position, trained: EngineState, metrics: Mapping[str, float]
    ) -> Path:
        """A whole checkpoint in a local temporary directory."""
        config, session = self.config, self.session
        state = TrainerState(
            step=position.step,
            samples=session.plan.samples_after(position.step),
            seed=config.run.seed,
            learning_rate=learning_rate(position.step - 1, session.plan.total_steps, config.train),
            total_steps=session.plan.total_steps,
            skipped=position.skipped,
            skipped_in_a_row=position.skipped_in_a_row,
            best=position.best.to_dict(),
            data_fingerprint=session.data.fingerprint(),
            base_fingerprint=session.base_fingerprint,
            config_fingerprint=config.fingerprint(),
        )
        directory = Path(tempfile.mkdtemp(prefix="causal-checkpoint-"))
        tokenizer = session.data.encoder.tokenizer
        try:
            save_checkpoint(
                directory, session.engine, trained, config, tokenizer, state, dict(metrics)
            )
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        return directory
