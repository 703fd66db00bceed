"""What a notebook calls: a run and its evaluation, as the commands do them (docs/api.md)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from causal_core.config import Config
from ray_jobs.run import run_evaluation, run_training


def train_run(
    config: Config, *, fresh: bool = False, test: bool = True, quiet: bool = False
) -> dict[str, Any]:
    """Trains, evaluates on the config's test sets and writes the report, as `causal train`.

    A run that is there already goes on from its newest whole checkpoint.

    Args:
        fresh: Start over; the earlier run directory is renamed.
        test: Evaluate after training.
        quiet: Print nothing.

    Returns:
        The content of summary.json.
    """
    return run_training(config, Console(quiet=quiet), fresh=fresh, test=test)


def evaluate_run(
    run: str | Path,
    against: Mapping[str, str | Path] | None = None,
    *,
    trust_remote_code: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Evaluates a finished run beside its base and other runs, for its record and its report.

    Args:
        against: Other runs by the name to show them under.
        trust_remote_code: Run Python code that ships with the model, which you have read.

    Returns:
        Metrics with intervals by model and test set, and examples.
    """
    others = {name: Path(path) for name, path in (against or {}).items()}
    result = run_evaluation(
        Path(run).resolve(),
        Console(quiet=quiet),
        others,
        trust_remote_code=trust_remote_code,
    )
    return dict(result["evaluation"])
