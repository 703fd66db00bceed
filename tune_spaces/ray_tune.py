"""The campaign on Ray Tune: its searcher and scheduler interfaces, and the run itself."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray
from ray import tune
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from causal_core.config import Config
from tune_spaces.campaign import Campaign
from tune_spaces.ledger import Trial
from tune_spaces.trial import run_trial

_TUNE = "ray"  # Ray Tune's own files below the sweep's directory; nothing is read from them

# What a trial's driver holds: it only waits. Tune refuses nothing at all, and a part of a CPU would
# keep a worker that needs a whole one off that node; a byte of memory hurts nobody.
_DRIVER = {"memory": 1}

_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the ledger is the record
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the program, which continues when run again
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "RAY_AIR_NEW_OUTPUT": "0",
}


# Tune copies these from its own environment into the runtime environment of its trials, which Ray's
# agents write to their logs. Every node has what its operator gave it.
_NOT_FOR_LOGS = (
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN",
)  # fmt: skip


@contextlib.contextmanager
def _secrets_set_aside() -> Iterator[None]:
    """Without those variables while Tune starts trials; it stores its own files locally."""
    aside = {name: os.environ.pop(name) for name in _NOT_FOR_LOGS if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(aside)


@contextlib.contextmanager
def _working_directory(directory: Path) -> Iterator[None]:
    """Works inside `directory`, and goes back if that is still possible.

    Tune asks for the working directory. A job's own is an upload, which Ray may have unpacked anew
    since (several nodes on one machine): then it is gone for this process.
    """
    try:
        before = Path.cwd()
    except FileNotFoundError:
        before = None
    os.chdir(directory)
    try:
        yield
    finally:
        if before is not None:
            with contextlib.suppress(FileNotFoundError):
                os.chdir(before)


class _NoProgress(TrialProgressCallback):
    """In place of Tune's own, which prints the end of a trial even where `verbose` is 0."""

    def on_trial_complete(self, *_: Any, **__: Any) -> None:
        """Nothing: the live table says it."""


class CampaignSearch(Searcher):
    """The campaign as Ray Tune's searcher. It keeps no state of its own, so none is saved."""

    def __init__(self, campaign: Campaign) -> None:
        super().__init__()
        self._campaign = campaign
        self._numbers: dict[str, int] = {}  # by Tune's name of a trial

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        start = self._campaign.next()
        if start is None:
            return str(Searcher.FINISHED)
        self._numbers[trial_id] = start.number
        return {"config": start.config.model_dump(mode="json")}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._campaign.report(self._numbers[trial_id], result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        number = self._numbers[trial_id]
        if result:  # the report that a trial was stopped on comes here only
            self._campaign.report(number, result)
        self._campaign.end(number, error=error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is on disk already."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a sweep is continued from its ledger, in a new Tune run."""

    def __deepcopy__(self, memo: dict[int, Any]) -> CampaignSearch:
        return self  # Tune copies its searcher; this one stands for what is on disk

    def __reduce__(self) -> tuple[Any, ...]:
        return (str, ("the ledger is the state",))  # Tune stores its arguments beside its results


def scheduler_of(campaign: Campaign, total_steps: int) -> TrialScheduler:
    """ASHA on the validation metric, told what earlier trials reported; else none is stopped.

    Args:
        total_steps: Optimizer steps of a trial.
    """
    tune_config, run = campaign.sweep.tune, campaign.sweep.run
    metric = tune_config.in_run_metric()
    every = run.checkpoint.every_steps
    # A trial that has done its last step is judged, not stopped: the last rung comes before.
    last_rung = (total_steps - 1) // every * every
    first = tune_config.asha.first_steps or every
    if metric is None or last_rung < first:
        return FIFOScheduler()
    maximize = metric == "causal_discrimination"
    scheduler = ASHAScheduler(
        time_attr="step",
        metric=f"validation_{metric}",
        mode="max" if maximize else "min",
        max_t=last_rung,
        grace_period=first,
        reduction_factor=tune_config.asha.factor,
        stop_last_trials=False,
    )
    for trial in campaign.ledger.trials:
        if trial.is_over:  # an interrupted one reports again
            _tell(scheduler, trial)
    return scheduler


def _tell(scheduler: ASHAScheduler, trial: Trial) -> None:
    stand_in = SimpleNamespace(trial_id=f"earlier-{trial.number}")
    scheduler.on_trial_add(None, stand_in)
    for report in trial.reports:
        scheduler.on_trial_result(None, stand_in, report)


def run_on_tune(campaign: Campaign, slots: int, total_steps: int) -> None:
    """Runs a campaign to its end on the connected Ray, `slots` trials at a time."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # the table says what failed
    shutil.rmtree(campaign.sweep.directory / _TUNE, ignore_errors=True)
    run: Config = campaign.sweep.run
    tuner = tune.Tuner(
        tune.with_resources(run_trial, _DRIVER),
        tune_config=tune.TuneConfig(
            search_alg=CampaignSearch(campaign),
            scheduler=scheduler_of(campaign, total_steps),
            num_samples=-1,  # the searcher says when it is over
            max_concurrent_trials=slots,
        ),
        run_config=tune.RunConfig(
            name=_TUNE,
            storage_path=str(campaign.sweep.directory),
            failure_config=tune.FailureConfig(max_failures=run.ray.max_failures),
            verbose=0,
            callbacks=[_NoProgress()],
        ),
    )
    with _secrets_set_aside(), _working_directory(campaign.sweep.directory):
        tuner.fit()


def node_resources() -> list[dict[str, float]]:
    """Resources of each live node of the connected Ray."""
    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
