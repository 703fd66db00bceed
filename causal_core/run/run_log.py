"""The files that a run writes as it goes: metrics and speed, and what goes to trackers.

`metrics.jsonl` holds what the run computed and is the same however often it was interrupted;
what depends on the clock (seconds, tokens per second, memory) goes to `performance.jsonl`.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from causal_core.config import LoggingSection
from causal_core.errors import StorageRefusedError
from causal_core.files import METRICS_FILE, PERFORMANCE_FILE, read_records, write_whole
from causal_core.run.context import RunContext
from causal_core.run.trackers import Tracker, open_trackers
from causal_core.step.train_step import StepReport


class RunLog:
    """Appends records; opened at a step, it drops what an interrupted run wrote beyond it."""

    def __init__(
        self, directory: Path, step: int, logging: LoggingSection, trackers: Sequence[Tracker] = ()
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        for name in (METRICS_FILE, PERFORMANCE_FILE):
            _truncate(directory / name, step)
        self._files = {
            name: (directory / name).open("a", encoding="utf-8", buffering=1)
            for name in (METRICS_FILE, PERFORMANCE_FILE)
        }
        opened = open_trackers(logging.trackers, directory, logging.project, step)
        self._trackers = [*opened, *trackers]

    def metrics(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """One line of `metrics.jsonl`; `kind` is train, validation or evaluation."""
        self._write(METRICS_FILE, {"kind": kind, "step": step, **values})
        self._scalars(kind, step, values)

    def performance(self, step: int, values: Mapping[str, Any]) -> None:
        """One line of `performance.jsonl`; `time` is in seconds since 1970."""
        self._write(PERFORMANCE_FILE, {"step": step, "time": time.time(), **values})
        self._scalars("performance", step, values)

    def step(
        self,
        step: int,
        about: Mapping[str, Any],
        report: StepReport,
        triplets: int,
        seconds: float,
        peak_memory_bytes: int,
    ) -> None:
        """One optimizer step: `about` (where the run is) and what the step reports."""
        skipped = {} if report.applied else {"skipped": True}
        self.metrics("train", step, {**about, **report.metrics(), **skipped})
        self.performance(
            step,
            {
                "seconds": seconds,
                "triplets_per_second": triplets / seconds,
                "nodes_per_second": report.nodes / seconds,
                "sharing": report.path_tokens / max(1, report.nodes),
                "padding": 1 - report.nodes / max(1, report.padded_nodes),
                "peak_memory_bytes": peak_memory_bytes,
            },
        )

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        for tracker in self._trackers:
            tracker.close()

    def _write(self, name: str, record: Mapping[str, Any]) -> None:
        plain = {k: None if _is_nan(v) else v for k, v in record.items()}
        try:
            self._files[name].write(json.dumps(plain, allow_nan=False) + "\n")
        except OSError as error:
            raise StorageRefusedError(
                f"{self._directory / name} cannot be written: {error.strerror}. Make room there "
                "and run the same command again: it continues from the last checkpoint. Another "
                "run.dir would start over"
            ) from error

    def _scalars(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        numbers = {f"{kind}/{k}": v for k, v in values.items() if isinstance(v, int | float)}
        for tracker in self._trackers:
            tracker.scalars(numbers, step)


class SilentRunLog(RunLog):
    """Of all workers but rank 0: one log is enough for a run."""

    def __init__(self) -> None:
        pass

    def metrics(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Nothing."""

    def performance(self, step: int, values: Mapping[str, Any]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


@contextlib.contextmanager
def open_run_log(context: RunContext, logging: LoggingSection, step: int) -> Iterator[RunLog]:
    """This worker's log of a run that continues after `step`."""
    log = (
        RunLog(context.directory, step, logging, context.trackers)
        if context.rank == 0
        else SilentRunLog()
    )
    with contextlib.closing(log):
        yield log


def _is_nan(value: Any) -> bool:
    """Whether a value is a float that JSON has no word for (a non-finite loss, say)."""
    return isinstance(value, float) and not math.isfinite(value)


def _truncate(path: Path, step: int) -> None:
    if not path.is_file():
        return
    kept = [r for r in read_records(path) if r["step"] <= step]
    write_whole(path, "".join(json.dumps(r) + "\n" for r in kept))
