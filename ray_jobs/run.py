"""A whole run: plan, training, evaluation, summary, report. What `causal train` does."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from causal_core.config import Config, run_directory
from causal_core.config_file import recorded_config
from causal_core.errors import RunFailedError, UserError
from causal_core.evaluation.metrics import TRAINED
from causal_core.evaluation.subject import Subject
from causal_core.files import BEST, CONFIG, SUMMARY, cache_root, write_whole
from causal_core.report.recorded import read_summary
from causal_core.report.run_report import write_report
from causal_core.run.lock import only_writer
from causal_core.run.trackers import check_trackers
from causal_core.tokens.overlap import refuse_overlap
from causal_core.tokens.run_data import RunData, load_run_data, step_plan
from ray_jobs.console.answer import print_json
from ray_jobs.console.logs import configure_logs, event
from ray_jobs.console.plain import plain
from ray_jobs.console.progress import evaluation_progress, training_progress
from ray_jobs.console.quiet import quiet_libraries
from ray_jobs.console.result import show_result
from ray_jobs.earlier_results import refuse_rounded_record
from ray_jobs.evaluate import (
    PROGRESS,
    Found,
    evaluate,
    expected_progress,
    left_to_evaluate,
    record_evaluation,
    subjects_of,
    test_sets,
)
from ray_jobs.plan.command import plan_of, show_plan
from ray_jobs.training.process import worker_process
from ray_jobs.training.ray_session import refused_here
from ray_jobs.training.trainer import fit

log = logging.getLogger(__name__)


def train_command(
    config: Config, *, fresh: bool = False, test: bool = True, as_json: bool = False
) -> None:
    """Trains, evaluates, reports; prints what it came to."""
    form = config.logging.format
    configure_logs(form, run=str(run_directory(config)))
    console = Console(stderr=as_json, quiet=form == "json")
    result = run_training(config, console, fresh=fresh, test=test)
    if as_json:
        print_json(result)
    else:
        show_result(console, run_directory(config), result)
    event(log, "run finished", **result["run"])


def run_training(
    config: Config,
    console: Console,
    *,
    fresh: bool = False,
    test: bool = True,
    planned: bool = False,
    report: bool = True,
) -> dict[str, Any]:
    """Trains (or resumes), evaluates where the config has test sets, and writes the report.

    Args:
        planned: It is known that there is memory for it, and no plan is made.
        report: Write the report of a run that is not tested, too: not where an evaluation that
            writes it comes next.

    Returns:
        The content of summary.json.
    """
    quiet_libraries()
    config = config.with_absolute_paths()
    check_trackers(config.logging.trackers)
    if (missing := refused_here(config)) is not None:
        raise UserError(missing)
    with only_writer(run_directory(config), fresh=fresh) as moved:
        if moved is not None:
            console.print(plain(f"The earlier run is now in {moved}"))
        with worker_process(config):  # one for training and evaluation
            return _trained(config, console, test, planned, report)


def _trained(
    config: Config, console: Console, test: bool, planned: bool, report: bool
) -> dict[str, Any]:
    directory = run_directory(config)
    data = _prepared_data(config, console)
    if not planned:
        plan = plan_of(config, data)
        show_plan(console, plan)
        event(log, "plan", **plan)
    steps = step_plan(config, len(data.train)).total_steps
    if not (directory / CONFIG).exists():
        write_whole(directory / CONFIG, config.to_yaml())
    with training_progress(console, directory, steps):
        summary = fit(config)
    if summary["finished"] and not summary["steps_now"] and (directory / SUMMARY).is_file():
        earlier = read_summary(directory, ended=True)
        if earlier["evaluation"] or not (test and config.data.test):
            # Its config stays, too: other test sets or a limit are not what the summary is of.
            console.print("This run was finished already; --fresh starts over.")
            return earlier
        summary = earlier["run"]
    # Again, now that the workers accepted it: a refused resume leaves the earlier one alone.
    write_whole(directory / CONFIG, config.to_yaml())
    result = {
        "status": "finished" if summary["finished"] else "stopped",
        "run": summary,
        "config": config.model_dump(mode="json"),
        "evaluation": None,
    }
    write_whole(directory / SUMMARY, json.dumps(result, indent=1) + "\n")
    if not summary["finished"]:
        raise RunFailedError(
            f"stopped at step {summary['steps']} of {summary['planned_steps']} as asked; the same "
            "command continues from there"
        )
    if test and config.data.test:
        return _evaluated_for_the_record(config, directory, console, {})
    if report:
        write_report(directory)
    return result


def run_evaluation(
    directory: Path,
    console: Console,
    against: Mapping[str, Path],
    *,
    trust_remote_code: bool = False,
    known: Found | None = None,
) -> dict[str, Any]:
    """Evaluates a finished run beside its base and other runs, for its record, and rewrites its
    report.

    Args:
        directory: A run directory.
        against: Other runs' directories by the name to show them under.
        trust_remote_code: Whether Python code that ships with the run's model may run; what the
            run's own config says of it, of the cluster to connect to and of the cache
            ($CAUSAL_RAY_CACHE names one) is not heeded.
        known: Of some of the models, where they were evaluated already.

    Returns:
        The content of summary.json, with this evaluation.
    """
    quiet_libraries()
    read_summary(directory, ended=True)
    config = recorded_config(directory, trust_remote_code)
    if (missing := refused_here(config)) is not None:
        raise UserError(f"{missing} in {directory / CONFIG}")
    with only_writer(directory):
        refuse_rounded_record(directory, config)
        return _evaluated_for_the_record(config, directory, console, against, known)


def _evaluated_for_the_record(
    config: Config,
    directory: Path,
    console: Console,
    against: Mapping[str, Path],
    known: Found | None = None,
) -> dict[str, Any]:
    """Evaluates a run whose lock is held, and puts the result into all of its files."""
    read_summary(directory, ended=True)
    config = config.model_copy(deep=True)
    config.run.dir = str(directory)
    checkpoints: dict[str, Path | None] = {"base": None}
    checkpoints.update({name: other / BEST for name, other in against.items()})
    checkpoints[TRAINED] = directory / BEST
    evaluation = evaluated(config, subjects_of(config, checkpoints), console, known=known)
    return put_on_record(directory, evaluation)


def evaluated(
    config: Config,
    subjects: Sequence[Subject],
    console: Console,
    trace: Path | None = None,
    known: Found | None = None,
) -> dict[str, Any]:
    """`evaluate` with its progress shown; the config's run.dir holds what workers log meanwhile."""
    if not (left := left_to_evaluate(config, subjects, known)):
        return evaluate(config, subjects, trace, known)
    total = expected_progress(config, len(left))
    with evaluation_progress(console, run_directory(config) / PROGRESS, total):
        return evaluate(config, subjects, trace, known)


def put_on_record(directory: Path, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Makes an evaluation the one of record of a run whose lock is held, in all of its files.

    Returns:
        The content of summary.json, with this evaluation.
    """
    result = read_summary(directory, ended=True)
    record_evaluation(directory, result["run"]["steps"], evaluation)
    result["evaluation"] = dict(evaluation)
    write_whole(directory / SUMMARY, json.dumps(result, indent=1) + "\n")
    write_report(directory)
    return result


def _prepared_data(config: Config, console: Console) -> RunData:
    shown = 0

    def progress(done: int) -> None:
        nonlocal shown
        if done - shown >= 50_000:
            console.print(plain(f"{done:,} rows tokenised"))
            shown = done

    data = load_run_data(config, progress)
    refuse_overlap(
        {"train": data.train, "validation": data.validation, **test_sets(config)},
        config.data.overlap,
        lambda text: console.print(plain(text, lines=True), style="yellow"),
        cache_root(config.data.cache_dir),
    )
    return data
