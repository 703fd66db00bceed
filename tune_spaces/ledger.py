"""The history of a sweep on disk: one JSON line per event, appended and never changed.

It is the one source of truth. The searcher sees it, the table and the report are made from it, and
a sweep that was killed continues from it: everything else in the directory can be made again.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from causal_core.errors import UserError
from tune_spaces.config import SweepConfig
from tune_spaces.objectives import pareto_front, value_of, values_of
from tune_spaces.space import Point

LEDGER = "ledger.jsonl"

Status = Literal["refused", "running", "finished", "stopped", "failed"]


# However low the lowest benign NLL is: below this, differences are noise.
LEAST_TOLERANCE_NATS = 0.1


@dataclass
class Trial:
    """One suggestion and what became of it."""

    number: int
    point: Point
    status: Status
    predicted_bytes: int | None = None  # what a worker needs by plan; see `budget.Admission`
    comparable_bytes: int | None = None  # the part of it that the measured peak is comparable to
    micro_batch_tokens: int | None = None
    accelerator_type: str | None = None  # of the nodes that it runs on; None: any
    reason: str = ""
    reports: list[dict[str, float]] = field(default_factory=list)
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    steps: int | None = None

    @property
    def is_over(self) -> bool:
        return self.status != "running"


class Ledger:
    """Appends events and keeps the trials they amount to; safe to read from other threads."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / LEDGER
        self._lock = threading.Lock()
        self._trials: dict[int, Trial] = {}
        self._identity: dict[str, Any] | None = None
        self.exhausted = ""  # why nothing is left to try, before all trials were made
        for record in self._read():
            self._apply(record)

    @property
    def trials(self) -> list[Trial]:
        """All trials by number."""
        with self._lock:
            return [self._trials[number] for number in sorted(self._trials)]

    def begin(self, sweep: SweepConfig) -> None:
        """Opens the sweep, or continues it.

        Raises:
            UserError: the directory holds another sweep; names what differs.
        """
        # As JSON reads it back, so that 1 and 1.0 or tuples and lists do not differ.
        identity = json.loads(json.dumps(sweep.identity()))
        if self._identity is None:
            self.append({"event": "sweep", "identity": identity})
            return
        before = self._identity
        changed = sorted(
            key for key in identity.keys() | before.keys() if identity.get(key) != before.get(key)
        )
        if changed:
            first = changed[0]
            raise UserError(
                f"{self.path.parent} holds a sweep with another config ({', '.join(changed)} "
                f"differ; {first} was {before.get(first)!r} and is {identity.get(first)!r}): its "
                "trials would not be comparable. Give another run.dir, or --fresh to set it aside"
            )

    def append(self, record: Mapping[str, Any]) -> None:
        """Writes one event through to the disk, then counts it."""
        line = json.dumps(dict(record), allow_nan=False) + "\n"
        with self._lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as target:
                target.write(line.encode("utf-8"))
                target.flush()
                os.fsync(target.fileno())
            self._apply(json.loads(line))

    def _read(self) -> list[dict[str, Any]]:
        """The whole lines; one cut off by a crash is removed, or the next would continue it."""
        if not self.path.is_file():
            return []
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with self.path.open("r+b") as target:
                target.truncate(whole)
        records = []
        for number, line in enumerate(content[:whole].decode("utf-8").splitlines(), start=1):
            try:
                records.append(json.loads(line))
            except ValueError as error:
                raise UserError(
                    f"{self.path}, line {number} is not JSON ({error}): the file was altered; "
                    "--fresh sets the sweep aside and starts over"
                ) from None
        return records

    def _apply(self, record: Mapping[str, Any]) -> None:
        event = record["event"]
        if event == "sweep":
            self._identity = record["identity"]
        elif event == "exhausted":
            self.exhausted = record["reason"]
        elif event in ("refused", "started"):
            trial = Trial(
                number=record["number"],
                point=record["point"],
                status="refused" if event == "refused" else "running",
                predicted_bytes=record.get("predicted_bytes"),
                comparable_bytes=record.get("comparable_bytes"),
                micro_batch_tokens=record.get("micro_batch_tokens"),
                accelerator_type=record.get("accelerator_type"),
                reason=record.get("reason", ""),
            )
            self._trials[trial.number] = trial
        elif event == "report":
            self._trials[record["number"]].reports.append(record["metrics"])
        elif event == "ended":
            trial = self._trials[record["number"]]
            trial.status = record["status"]
            trial.reason = record.get("reason", "")
            trial.metrics = record.get("metrics", {})
            trial.steps = record.get("steps")


def violations(trial: Trial, sweep: SweepConfig) -> dict[str, float]:
    """How far a finished trial is beyond each constraint; one that was not measured counts as
    broken."""
    found: dict[str, float] = {}
    for name, bound in sweep.tune.constraints.items():
        value = value_of(trial.metrics, name)
        found[name] = 1.0 if value is None else bound.violation(value)
    return found


def ranked(trials: list[Trial], sweep: SweepConfig) -> list[int]:
    """Numbers of the trials on the Pareto front of those that keep the constraints, the best by
    the first objective first.

    A model that answers nothing resists everything (invariant I10), so the best one must still
    answer: its benign NLL may exceed the lowest of all trials by `tune.benign_tolerance` only.
    Constraints of the user's own on benign quality take the place of this one.
    """
    points = {}
    for trial in trials:
        if trial.status != "finished" or any(violations(trial, sweep).values()):
            continue
        values = values_of(trial.metrics, sweep.tune.objectives)
        if values is not None:
            points[trial.number] = values
    useful = _still_answering(trials, sweep) & points.keys()
    best = pareto_front({n: points[n] for n in useful}, sweep.tune.objectives)[:1]
    if len(sweep.tune.objectives) == 1:
        return best
    return best + [n for n in pareto_front(points, sweep.tune.objectives) if n not in best]


def _still_answering(trials: list[Trial], sweep: SweepConfig) -> set[int]:
    """Trials whose benign NLL is near the lowest, and those where it was not measured."""
    measured = {t.number: value_of(t.metrics, "benign_nll") for t in trials}
    known = [value for value in measured.values() if value is not None]
    if not known or {"benign_nll", "benign_exact"} & sweep.tune.constraints.keys():
        return set(measured)
    limit = min(known) + max(sweep.tune.benign_tolerance * min(known), LEAST_TOLERANCE_NATS)
    return {number for number, value in measured.items() if value is None or value <= limit}
