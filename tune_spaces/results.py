"""What a sweep leaves behind for programs: results.parquet and best.yaml."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from causal_core.errors import ConfigError
from causal_core.files import whole_or_absent, write_whole
from tune_spaces.campaign import Campaign
from tune_spaces.ledger import Trial, ranked
from tune_spaces.objectives import OBJECTIVES

RESULTS, BEST_CONFIG, BEST_RUN = "results.parquet", "best.yaml", "best"


def summary_of(campaign: Campaign) -> dict[str, Any]:
    """The whole sweep as plain values (`--json`)."""
    sweep = campaign.sweep
    trials = campaign.ledger.trials
    front = ranked(trials, sweep)
    counts = {
        status: sum(t.status == status for t in trials)
        for status in ("finished", "stopped", "failed", "refused", "running")
    }
    return {
        "directory": str(sweep.directory),
        "objectives": list(sweep.tune.objectives),
        "budget_bytes": sweep.budget_bytes,
        "counts": counts,
        "pareto": front,
        "best": front[0] if front else None,
        "ended_early_because": campaign.ledger.exhausted,
        "trials": [_described(trial) for trial in trials],
    }


def _described(trial: Trial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "status": trial.status,
        "reason": trial.reason,
        "point": trial.point,
        "predicted_bytes": trial.predicted_bytes,
        "micro_batch_tokens": trial.micro_batch_tokens,
        "accelerator_type": trial.accelerator_type,
        "steps": trial.steps,
        "metrics": trial.metrics,
    }


def write_results(campaign: Campaign) -> Path:
    """One row per trial, refused ones too, whole or not at all.

    Columns: number, status, reason, pareto, best; `point.PATH` (JSON); config (JSON of the resolved
    run); predicted_bytes, comparable_bytes, budget_bytes (of the device it ran on, or of the
    largest), accelerator_type, micro_batch_tokens, steps, directory; `NAME`, `NAME_low`,
    `NAME_high` of every objective.
    """
    sweep = campaign.sweep
    trials = campaign.ledger.trials
    front = ranked(trials, sweep)
    rows = [_row(campaign, trial, front) for trial in trials]
    schema = pa.schema(
        [
            ("number", pa.int64()), ("status", pa.string()), ("reason", pa.string()),
            ("pareto", pa.bool_()), ("best", pa.bool_()),
            *((f"point.{path}", pa.string()) for path in sweep.tune.space.root),
            ("config", pa.string()), ("predicted_bytes", pa.int64()),
            ("comparable_bytes", pa.int64()), ("budget_bytes", pa.int64()),
            ("accelerator_type", pa.string()),
            ("micro_batch_tokens", pa.int64()), ("steps", pa.int64()), ("directory", pa.string()),
            *((name + end, pa.float64()) for name in OBJECTIVES for end in ("", "_low", "_high")),
        ]
    )  # fmt: skip
    path = sweep.directory / RESULTS
    with whole_or_absent(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), temporary)
    return path


def _row(campaign: Campaign, trial: Trial, front: list[int]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "number": trial.number,
        "status": trial.status,
        "reason": trial.reason,
        "pareto": trial.number in front,
        "best": front[:1] == [trial.number],
        "config": _config_json(campaign, trial),
        "predicted_bytes": trial.predicted_bytes,
        "comparable_bytes": trial.comparable_bytes,
        "budget_bytes": campaign.sweep.budgets.get(
            trial.accelerator_type, campaign.sweep.budget_bytes
        ),
        "accelerator_type": trial.accelerator_type,
        "micro_batch_tokens": trial.micro_batch_tokens,
        "steps": trial.steps,
        "directory": str(campaign.directory(trial.number)) if trial.status != "refused" else None,
    }
    row |= {f"point.{path}": json.dumps(value) for path, value in trial.point.items()}
    for name, found in trial.metrics.items():
        row |= {name + end: _number(found, key) for end, key in _ENDS}
    return row


_ENDS = (("", "value"), ("_low", "low"), ("_high", "high"))


def _number(found: Mapping[str, Any], key: str) -> float | None:
    value = found.get(key)
    return float(value) if isinstance(value, int | float) else None


def _config_json(campaign: Campaign, trial: Trial) -> str | None:
    try:
        return json.dumps(campaign.config_of(trial).model_dump(mode="json"))
    except ConfigError:  # refused because its values do not go together
        return None


def write_best(campaign: Campaign) -> Path | None:
    """The best trial's run, ready for `causal train`: the same training into a directory of its
    own, followed by the test sets. None where no trial finished within the constraints."""
    front = ranked(campaign.ledger.trials, campaign.sweep)
    path = campaign.sweep.directory / BEST_CONFIG
    if not front:
        path.unlink(missing_ok=True)
        return None
    trial = next(t for t in campaign.ledger.trials if t.number == front[0])
    config = campaign.config_of(trial)
    config.run.dir = str(campaign.sweep.directory / BEST_RUN)
    text = f"# Trial {trial.number} of the sweep in {campaign.sweep.directory}\n{config.to_yaml()}"
    return write_whole(path, text)
