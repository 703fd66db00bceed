"""A sweep without Ray: what to start next, what is over, what it came to. Ray Tune only runs it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from causal_core.config import Config
from causal_core.errors import ConfigError
from causal_core.files import PERFORMANCE_FILE, read_records
from tune_spaces.budget import Admission, Gate, placed_on
from tune_spaces.config import SweepConfig
from tune_spaces.ledger import Ledger, Trial
from tune_spaces.searcher import searcher_of

OUTCOME = "outcome.json"  # in a trial's directory: what its driver says it came to
ERROR = "error.txt"  # beside it: the traceback of a driver that did not get that far
TRIALS = "trials"
MOST_IN_VAIN = 100  # suggestions in a row that cannot be used, before the search ends


@dataclass(frozen=True)
class Start:
    """A trial to run now."""

    number: int
    config: Config


class Campaign:
    """Asks the searcher, passes what it suggests through the gate, and writes the ledger.

    Args:
        threads: CPU threads of each worker; None leaves the config's.
    """

    def __init__(
        self, sweep: SweepConfig, ledger: Ledger, gate: Gate, threads: int | None = None
    ) -> None:
        self.sweep, self.ledger = sweep, ledger
        self._gate, self._threads = gate, threads
        self._searcher = searcher_of(sweep)
        self._next_number = max((t.number for t in ledger.trials), default=-1) + 1
        self._interrupted = [t.number for t in ledger.trials if not t.is_over]
        self.ended_now: set[int] = set()  # trials that ended in this session
        self.slots: Mapping[str | None, int] = {}  # trials at a time by accelerator type

    def settle(self) -> None:
        """Ends the interrupted trials whose drivers had said the last word already."""
        for number in list(self._interrupted):
            if read_outcome(self.directory(number)) is not None:
                self._interrupted.remove(number)
                self.end(number, error=False)

    def is_over(self) -> bool:
        """Whether nothing is left to run."""
        if self._interrupted:
            return False
        return bool(self.ledger.exhausted) or self._trained() >= self.sweep.tune.trials

    def next(self) -> Start | None:
        """The next trial: an interrupted one, else a new point that fits; None: no more.

        Refused points are written to the ledger, where the searcher sees them as infeasible.
        """
        if self._interrupted:
            number = self._interrupted.pop(0)
            return Start(number, self.config_of(self._trial(number)))
        for _ in range(MOST_IN_VAIN):
            history = self.ledger.trials
            if self.is_over():
                return None
            number = self._next_number
            self._next_number += 1
            point = self._searcher.suggest(number, history)
            if point is None:
                self._exhausted("every point of the grid has been tried")
                return None
            if any(trial.point == point for trial in history):
                continue  # it would come to the same
            admission = self._admit(number, point)
            self.ledger.append(
                {
                    "event": "refused" if admission.config is None else "started",
                    "number": number,
                    "point": point,
                    "predicted_bytes": admission.predicted_bytes,
                    "comparable_bytes": admission.comparable_bytes,
                    "micro_batch_tokens": admission.micro_batch_tokens,
                    "accelerator_type": admission.accelerator_type,
                    "reason": admission.reason,
                }
            )
            if admission.config is not None:
                return Start(number, self._placed(number, admission.config))
        self._exhausted(
            f"{MOST_IN_VAIN} suggestions in a row did not fit the budget or had been tried"
        )
        return None

    def _exhausted(self, reason: str) -> None:
        self.ledger.append({"event": "exhausted", "reason": reason})

    def report(self, number: int, metrics: Mapping[str, Any]) -> None:
        """A validation inside a running trial; one that was reported already is left out."""
        kept = {
            key: float(value)
            for key, value in metrics.items()
            if (key == "step" or key.startswith("validation_"))
            and isinstance(value, int | float)
            and math.isfinite(value)
        }
        before = self._trial(number).reports
        if "step" in kept and (not before or kept["step"] > before[-1]["step"]):
            self.ledger.append({"event": "report", "number": number, "metrics": kept})

    def end(self, number: int, *, error: bool) -> None:
        """A trial is over; its directory says how.

        Args:
            error: Its driver died, more often than it may.
        """
        directory = self.directory(number)
        outcome = read_outcome(directory)
        if outcome is None:
            steps, metrics = cost(directory)
            if error:
                status, reason = "failed", _last_error(directory)
            else:
                status, reason = "stopped", self._why_stopped(self._trial(number))
            outcome = {"status": status, "reason": reason, "metrics": metrics, "steps": steps}
        self.ended_now.add(number)
        self.ledger.append({"event": "ended", "number": number, **outcome})

    def _trial(self, number: int) -> Trial:
        return next(trial for trial in self.ledger.trials if trial.number == number)

    def directory(self, number: int) -> Path:
        """A trial's run directory."""
        return self.sweep.directory / TRIALS / f"{number:04d}"

    def config_of(self, trial: Trial) -> Config:
        """The run of a trial that was admitted."""
        config = self.sweep.tune.space.apply(self.sweep.run, trial.point)
        admitted = placed_on(trial.accelerator_type, trial.micro_batch_tokens, config)
        return self._placed(trial.number, admitted)

    def _placed(self, number: int, config: Config) -> Config:
        placed = config.model_copy(deep=True)
        placed.run.dir = str(self.directory(number))
        if placed.resources.threads is None:
            placed.resources.threads = self._threads
        return placed

    def _admit(self, number: int, point: Mapping[str, Any]) -> Admission:
        try:
            config = self.sweep.tune.space.apply(self.sweep.run, dict(point))
        except ConfigError as error:
            reason = str(error).splitlines()[-1].strip()
            return Admission(None, None, None, None, f"no valid config: {reason}")
        return self._gate.admit(config, self._load())

    def _load(self) -> dict[str | None, float]:
        """Running trials per slot, by accelerator type."""
        running = [t.accelerator_type for t in self.ledger.trials if not t.is_over]
        return {name: running.count(name) / slots for name, slots in self.slots.items()}

    def _trained(self) -> int:
        return sum(trial.status != "refused" for trial in self.ledger.trials)

    def _why_stopped(self, trial: Trial) -> str:
        metric = self.sweep.tune.in_run_metric()
        last = trial.reports[-1] if trial.reports else {}
        if metric is None or f"validation_{metric}" not in last:
            return "stopped"
        return (
            f"behind the others at step {last['step']:.0f}: {metric} "
            f"{last[f'validation_{metric}']:.3g}"
        )


def read_outcome(directory: Path) -> dict[str, Any] | None:
    """What a trial's driver wrote last; None while it has not."""
    try:
        return dict(json.loads((directory / OUTCOME).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def _last_error(directory: Path) -> str:
    """Why a driver ended without an outcome, more often than it may."""
    path = directory / ERROR
    if not path.is_file():
        return "its driver died more often than ray.max_failures"
    return f"{path.read_text(encoding='utf-8').strip().splitlines()[-1]} (see {path})"


def cost(directory: Path) -> tuple[int, dict[str, dict[str, float]]]:
    """Steps of a run, and what they took: seconds, and peak memory of the first worker."""
    records = read_records(directory / PERFORMANCE_FILE)
    seconds = [r["seconds"] for r in records if "seconds" in r]
    peaks = [r["peak_memory_bytes"] for r in records if "peak_memory_bytes" in r]
    if not seconds:
        return 0, {}
    return max(r["step"] for r in records), {
        "seconds": {"value": sum(seconds)},
        "peak_memory_bytes": {"value": float(max(peaks))},
    }
