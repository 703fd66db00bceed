"""One trial: the driver function that Ray Tune runs, which trains on Ray Train and then judges.

It writes what it came to into the trial's run directory, so that nothing depends on the process
that is waiting for it.
"""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Mapping
from typing import Any

from causal_core.config import Config, run_directory
from causal_core.config_file import parse_config
from causal_core.errors import RunFailedError, UserError
from causal_core.evaluation.summary import aggregate
from causal_core.files import BEST, CONFIG, METRICS_FILE, SUMMARY, read_records, write_whole
from ray_jobs.console.quiet import quiet_libraries
from ray_jobs.evaluate import evaluated_rows
from ray_jobs.training.trainer import fit
from ray_jobs.training.worker_log import keep_log
from tune_spaces.campaign import ERROR, OUTCOME, cost
from tune_spaces.objectives import OBJECTIVES

log = logging.getLogger(__name__)

_TRIAL = "trained"
_TRIAL_LOG = "trial"
_VALIDATION = "validation"  # the name of the set that a trial is judged on


def run_trial(job: Mapping[str, Any]) -> None:
    """Trains (or resumes) a trial's run, judges its best checkpoint, writes the outcome.

    An error that the config is to blame for, or that Ray Train has given up on, is an outcome: a
    retry would end the same. Whatever else happens is Ray Tune's to retry.

    Args:
        job: `config`, the resolved tree of the trial's run.
    """
    from ray.tune.integration.ray_train import TuneReportCallback

    quiet_libraries()
    config = parse_config(job["config"])
    directory = run_directory(config)
    directory.mkdir(parents=True, exist_ok=True)
    keep_log(config.logging.format, directory, _TRIAL_LOG)
    write_whole(directory / CONFIG, config.to_yaml())
    try:
        summary = fit(config, callbacks=[TuneReportCallback()])
        if not summary["finished"]:
            raise RunFailedError(f"stopped at step {summary['steps']}, as asked")
        write_whole(directory / SUMMARY, json.dumps(_summary(config, summary)) + "\n")
        outcome = {"status": "finished", "metrics": judge(config), "steps": summary["steps"]}
    except (UserError, RunFailedError) as error:
        steps, metrics = cost(directory)
        outcome = {"status": "failed", "reason": str(error), "metrics": metrics, "steps": steps}
    except Exception:
        write_whole(directory / ERROR, traceback.format_exc())
        raise
    write_whole(directory / OUTCOME, json.dumps(outcome, allow_nan=False) + "\n")


def judge(config: Config) -> dict[str, dict[str, Any]]:
    """A finished run's figures on the validation data: value, and 95 % interval where there is one.

    The best checkpoint answers every validation row (attack success, benign quality, uplift,
    discrimination); NLL is that of the validation at the best step.
    """
    directory = run_directory(config)
    judged = config.model_copy(deep=True)
    judged.data.test = {_VALIDATION: config.data.validation}
    judged.evaluation.limit = config.data.limit_validation
    judged.evaluation.matmul = "float32"  # trials of several machines are compared
    rows = evaluated_rows(judged, {_TRIAL: directory / BEST}).rows[_TRIAL][_VALIDATION]
    found = aggregate(rows)
    metrics = {
        name: dict(estimate) for name in OBJECTIVES if (estimate := found.get(name)) is not None
    }
    records = [r for r in read_records(directory / METRICS_FILE) if r.get("kind") == "validation"]
    best_step = json.loads((directory / SUMMARY).read_text(encoding="utf-8"))["run"]["best_step"]
    for record in records:
        if record["step"] == best_step and record.get("benign_nll") is not None:
            metrics["benign_nll"] = {"value": record["benign_nll"]}
    return {**metrics, **cost(directory)[1]}


def _summary(config: Config, summary: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "status": "finished",
        "run": dict(summary),
        "config": config.model_dump(mode="json"),
        "evaluation": None,
    }
