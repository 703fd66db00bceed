"""A whole sweep, what `causal tune` does: look at the space, run the trials, leave the results."""

from __future__ import annotations

import os
from typing import Any

from rich.console import Console

from causal_core.amounts import gib
from causal_core.config import Config
from causal_core.device import available_cores
from causal_core.errors import ConfigError, RunFailedError, UserError
from causal_core.evaluation.metrics import SHARE
from causal_core.files import write_whole
from causal_core.run.lock import only_writer
from causal_core.tokens.run_data import RunData, load_run_data, step_plan
from ray_jobs.console.plain import plain
from ray_jobs.console.quiet import quiet_libraries
from ray_jobs.shared_prompts import refuse_shared
from ray_jobs.training.ray_session import ray_session
from tune_spaces.budget import Gate, Survey, budget_text, expected_slots, slots_by_type, survey
from tune_spaces.campaign import Campaign
from tune_spaces.config import SweepConfig
from tune_spaces.estimate import seconds_per_trial
from tune_spaces.ledger import Ledger
from tune_spaces.results import summary_of, write_best, write_results
from tune_spaces.space import describe
from tune_spaces.table import live_table, show_table

CONFIG = "config.yaml"


def dry_run(sweep: SweepConfig, console: Console) -> dict[str, Any]:
    """What a sweep would do: its space, how much of it fits the budget, trials and steps.

    Raises:
        ConfigError: nothing of the space fits; with the nearest change that would.
    """
    quiet_libraries()
    data, steps = _checked_data(sweep, console)
    with console.status("planning the space"):
        plan = _plan(sweep, survey(sweep, Gate(sweep.budgets)), data, steps)
    _show_plan(console, sweep, plan)
    return plan


def run_sweep(sweep: SweepConfig, console: Console, *, fresh: bool = False) -> dict[str, Any]:
    """Runs a sweep or continues it, and writes results.parquet, best.yaml and report.html.

    Returns:
        The sweep as plain values (see `results.summary_of`).

    Raises:
        UserError: config, data or directory cannot work; nothing of the space fits.
        RunFailedError: no trial finished within the constraints.
    """
    quiet_libraries()
    with only_writer(sweep.directory, fresh=fresh) as moved:
        if moved is not None:
            console.print(plain(f"The earlier sweep is now in {moved}"))
        return _swept(sweep, console)


def _swept(sweep: SweepConfig, console: Console) -> dict[str, Any]:
    from tune_spaces.report import write_report

    directory = sweep.directory
    data, steps = _checked_data(sweep, console)
    gate = Gate(sweep.budgets)
    ledger = Ledger(directory)
    if ledger.trials:
        console.print(plain(f"Continuing the sweep in {directory}"), soft_wrap=True)
    else:
        with console.status("planning the space"):
            plan = _plan(sweep, survey(sweep, gate), data, steps)
        _show_plan(console, sweep, plan)
    ledger.begin(sweep)
    write_whole(directory / CONFIG, sweep.to_yaml())
    campaign = Campaign(sweep, ledger, gate, _threads(sweep))
    campaign.settle()
    if campaign.is_over():
        console.print("This sweep was finished already; --fresh starts over.")
    else:
        _run(campaign, console, steps)
    write_results(campaign)
    best = write_best(campaign)
    report = write_report(campaign)
    show_table(console, campaign)
    summary = summary_of(campaign)
    if ledger.exhausted:
        console.print(plain(f"The search ended early: {ledger.exhausted}."))
    for name, path in (("results", directory / "results.parquet"), ("report", report)):
        console.print(plain(f"{name}: {path}"), soft_wrap=True)
    if best is None:
        raise RunFailedError(
            "no trial finished within the constraints, so there is no best.yaml; the table and "
            f"{report} say why"
        )
    console.print(plain(f"best: {best} (causal train {best})"), soft_wrap=True)
    return summary


def _run(campaign: Campaign, console: Console, steps: int) -> None:
    from tune_spaces.ray_tune import node_resources, run_on_tune

    run = campaign.sweep.run
    with ray_session(_session_config(campaign.sweep)):
        types = campaign.sweep.budgets or {run.resources.accelerator_type: 0}
        campaign.slots = slots_by_type(run, types, node_resources())
        slots = sum(campaign.slots.values())
        if _is_local(run):
            slots = min(slots, _local_slots(run))
        slots = min(slots, campaign.sweep.tune.max_concurrent or slots)
        with live_table(console, campaign, steps, slots):
            run_on_tune(campaign, slots, steps)


def _checked_data(sweep: SweepConfig, console: Console) -> tuple[RunData, int]:
    """The data, and the optimizer steps of a trial.

    Raises:
        UserError: there is none, splits share prompts, or an objective cannot be measured on it.
    """
    run = sweep.run
    data = load_run_data(run)
    assert data.validation is not None  # the config was checked
    # Test sets, too: no trial sees them, and the run with the best config would be refused.
    refuse_shared(run, data, lambda text: console.print(plain(text, lines=True), style="yellow"))
    named = [*sweep.tune.objectives, *sweep.tune.constraints]
    for name in ("attack_success", "uplift"):
        if name in named and not data.validation.has_witness():
            raise UserError(
                f"tune.objectives names {name}, and no validation triplet has a witness to look "
                "for: add witnesses, or aim at benign_exact or benign_nll"
            )
    if not _contrastive(sweep) and "causal_discrimination" in named:
        raise ConfigError(
            "tune.objectives names causal_discrimination, which is measured only where the "
            "contrastive terms train the projection head: set loss.lambda_causal above 0"
        )
    return data, step_plan(run, len(data.train)).total_steps


def _contrastive(sweep: SweepConfig) -> bool:
    from causal_core.loss.objective import TERMS, RepresentationTerm, is_contrastive

    fields = (f"loss.{term.weight}" for term in TERMS if isinstance(term, RepresentationTerm))
    return is_contrastive(sweep.run.loss) or any(f in sweep.tune.space.root for f in fields)


def _is_local(run: Config) -> bool:
    return not (run.ray.address or os.environ.get("RAY_ADDRESS"))


def _local_slots(run: Config) -> int:
    """Trials at a time on this machine alone: every worker with a core of its own where there are
    as many."""
    resources = run.resources
    per_trial = resources.max_workers * resources.cpus_per_worker
    slots = max(1, int(available_cores() / per_trial))
    if resources.gpus_per_worker:
        import torch

        if gpus := torch.cuda.device_count():  # none: planned here for a machine that has some
            node = {"CPU": slots * per_trial + 1, "GPU": float(gpus)}
            return expected_slots(run, [node])
    return slots


def _session_config(sweep: SweepConfig) -> Config:
    """The run, asking a local Ray for the workers of all trials at a time."""
    session = sweep.run.model_copy(deep=True)
    if _is_local(sweep.run):
        session.resources.workers = _local_slots(sweep.run) * sweep.run.resources.max_workers
    return session


def _threads(sweep: SweepConfig) -> int | None:
    """CPU threads of a worker, so that trials beside each other share the cores."""
    resources = sweep.run.resources
    if resources.gpus_per_worker or not _is_local(sweep.run):
        return None if resources.gpus_per_worker else max(1, int(resources.cpus_per_worker))
    slots = min(_local_slots(sweep.run), sweep.tune.max_concurrent or available_cores())
    return max(1, available_cores() // (slots * resources.max_workers))


def _plan(sweep: SweepConfig, found: Survey, data: RunData, steps: int) -> dict[str, Any]:
    tune = sweep.tune
    slots = _local_slots(sweep.run)
    slots = min(slots, tune.max_concurrent or slots)
    trials = min(tune.trials, found.fitting) if tune.searcher == "grid" else tune.trials
    return {
        "space": {path: d.model_dump(exclude_defaults=True) for path, d in tune.space.root.items()},
        "searcher": tune.searcher,
        "objectives": list(tune.objectives),
        "constraints": {n: b.model_dump(exclude_none=True) for n, b in tune.constraints.items()},
        "budget_bytes": sweep.budget_bytes,
        "points": found.points,
        "fitting": found.fitting,
        "invalid": found.invalid,
        "smallest_bytes": found.smallest_bytes,
        "smallest": found.smallest,
        "trials": trials,
        "trials_at_a_time": slots,
        "steps_per_trial": steps,
        "asha": tune.in_run_metric(),
        "expected_seconds": _expected_seconds(sweep.run, data, steps, trials, slots),
    }


def _expected_seconds(
    run: Config, data: RunData, steps: int, trials: int, slots: int
) -> float | None:
    """On this machine, where no trial is stopped early; None where it is not this CPU's work."""
    if run.resources.gpus_per_worker or not _is_local(run):
        return None
    return -(-trials // slots) * seconds_per_trial(run, data, steps, slots)


def _show_plan(console: Console, sweep: SweepConfig, plan: dict[str, Any]) -> None:
    from rich.table import Table

    tune = sweep.tune
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for path, dimension in tune.space.root.items():
        table.add_row(plain(path), plain(_dimension(dimension)))
    aims = ", ".join(tune.objectives)
    for name, bound in tune.constraints.items():
        limits = bound.model_dump(exclude_none=True).items()
        aims += "; " + " and ".join(f"{name} {k.replace('_', ' ')} {v:g}" for k, v in limits)
    table.add_row("aims at", aims)
    of = f"{plan['fitting']} of {plan['points']} points"
    if plan["budget_bytes"] is None:
        table.add_row("memory", "no budget (tune.gpu_memory): nothing is refused")
    else:
        share = plan["fitting"] / plan["points"]
        table.add_row(
            "memory",
            plain(
                f"{of} fit {budget_text(sweep.budgets)} per worker ({SHARE.text(share, 0)}); "
                f"the smallest needs {gib(plan['smallest_bytes'])}: {describe(plan['smallest'])}"
            ),
        )
    if plan["invalid"]:
        table.add_row("", f"{plan['invalid']} points hold values that do not go together")
    stopping = f"; ASHA stops those behind in {plan['asha']}" if plan["asha"] else ""
    table.add_row(
        "trials",
        f"{plan['trials']} by {tune.searcher}, {plan['trials_at_a_time']} at a time, "
        f"{plan['steps_per_trial']} optimizer steps each{stopping}",
    )
    expected = plan["expected_seconds"]
    table.add_row(
        "time",
        "seen in the table once a trial is over (no estimate for other machines and GPUs)"
        if expected is None
        else f"about {max(1, expected / 60):.0f} min on this machine, less what is stopped early",
    )
    console.print(table)


def _dimension(dimension: Any) -> str:
    from tune_spaces.space import Choice, LogUniform, show

    if isinstance(dimension, Choice):
        text = " | ".join(show(value) for value in dimension.values)
    else:
        scale = " (log)" if isinstance(dimension, LogUniform) else ""
        text = f"{dimension.low:g} to {dimension.high:g}{scale}"
        if isinstance(dimension, LogUniform) and dimension.zero:
            text += f", 0 in {dimension.zero:.0%} of draws"
    if dimension.when:
        text += f"  where {describe(dimension.when)}"
    return text
