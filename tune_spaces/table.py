"""The sweep as people watch it: a live table of trials, what is best so far, time left."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from causal_core.memory.units import gib
from causal_core.run_log import METRICS, read_records
from tune_spaces.budget import budget_text
from tune_spaces.campaign import Campaign
from tune_spaces.ledger import Trial, ranked, violations
from tune_spaces.objectives import shown, value_of
from tune_spaces.space import describe, show

_REFRESH_SECONDS = 1.0
_PLAIN_SECONDS = 5.0
_MOST_ROWS = 30  # of a live table; the closing one has all


@contextlib.contextmanager
def live_table(
    console: Console, campaign: Campaign, total_steps: int, slots: int
) -> Iterator[None]:
    """Shows the sweep while the `with` block runs: a table on a terminal, else a line per event."""
    stop = threading.Event()
    watch = _watch_live if console.is_terminal else _watch_plainly
    arguments = (console, campaign, total_steps, slots, stop)
    thread = threading.Thread(target=watch, args=arguments, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def show_table(console: Console, campaign: Campaign) -> None:
    """The closing table, and the refused points by reason."""
    console.print(trial_table(campaign, campaign.ledger.trials, {}))
    for trial in campaign.ledger.trials:
        if trial.status in ("refused", "failed"):
            console.print(
                f"trial {trial.number} {trial.status}: {describe(trial.point)}: {trial.reason}",
                markup=False, highlight=False, soft_wrap=True,
            )  # fmt: skip


def trial_table(campaign: Campaign, trials: list[Trial], steps: dict[int, str]) -> Table:
    """Trials as rows: point, state, objectives with intervals, memory planned and measured.

    Args:
        steps: What running trials are doing, by number.
    """
    sweep = campaign.sweep
    front = ranked(campaign.ledger.trials, sweep)
    paths = list(sweep.tune.space.root)
    aims = [*sweep.tune.objectives, *sweep.tune.constraints]
    aims = list(dict.fromkeys(aims))
    table = Table(title=f"sweep {sweep.directory.name}", title_justify="left")
    table.add_column("trial", justify="right")
    for path in paths:
        table.add_column(
            path.replace(".", ".\n", 1).replace("_", "_\n"), justify="right", overflow="fold"
        )
    table.add_column("state", overflow="fold")
    for name in aims:
        table.add_column(name.replace("_", " "), justify="right")
    table.add_column("memory\nplanned", justify="right")
    table.add_column("memory\nmeasured", justify="right")
    for trial in trials:
        mark = "★ " if trial.number in front[:1] else "• " if trial.number in front else ""
        peak = value_of(trial.metrics, "peak_memory_bytes")
        table.add_row(
            f"{mark}{trial.number}",
            *(show(trial.point[path]) if path in trial.point else "" for path in paths),
            _state(campaign, trial, steps),
            *(_figure(trial, name) for name in aims),
            gib(trial.predicted_bytes) if trial.predicted_bytes is not None else "",
            ""
            if (peak := value_of(trial.metrics, "peak_memory_bytes")) is None
            else gib(int(peak)),
            style=_STYLES.get(trial.status, ""),
        )
    table.caption = "★ best by the first objective   • on the Pareto front   small: 95 % interval"
    return table


_STYLES = {"refused": "dim", "stopped": "dim", "failed": "red", "running": "cyan"}


def _state(campaign: Campaign, trial: Trial, steps: dict[int, str]) -> str:
    if trial.status == "running":
        return steps.get(trial.number, "waiting")
    if trial.status == "stopped":
        return f"stopped at {trial.steps}"
    if trial.status == "finished":
        broken = [name for name, by in violations(trial, campaign.sweep).items() if by]
        return f"breaks {', '.join(broken)}" if broken else "finished"
    return trial.status


def _figure(trial: Trial, name: str) -> str:
    value = value_of(trial.metrics, name)
    if value is None:
        return ""
    found = trial.metrics[name]
    if "low" not in found:
        return shown(name, value)
    return f"{shown(name, value)}\n[dim]{shown(name, found['low'])} – {shown(name, found['high'])}"


def _header(campaign: Campaign, slots: int, began: float) -> str:
    trials = campaign.ledger.trials
    wanted = campaign.sweep.tune.trials
    over = [t for t in trials if t.is_over and t.status != "refused"]
    refused = sum(t.status == "refused" for t in trials)
    elapsed = time.monotonic() - began
    text = f"{len(over)} of {wanted} trials, {refused} refused, {slots} at a time, "
    text += f"{elapsed / 60:.1f} min"
    now = [t for t in over if t.number in campaign.ended_now]
    if now and len(over) < wanted:
        left = elapsed / len(now) * (wanted - len(over))
        text += f", about {left / 60:.0f} min left"
    budgets = campaign.sweep.budgets
    return text + (f"; budget {budget_text(budgets)} a worker" if budgets else "")


def _running_steps(campaign: Campaign, total_steps: int) -> dict[int, str]:
    found = {}
    for trial in campaign.ledger.trials:
        if trial.status == "running":
            records = read_records(campaign.directory(trial.number) / METRICS)
            step = max((r["step"] for r in records if r["kind"] == "train"), default=0)
            done = "judging" if step >= total_steps else f"step {step}/{total_steps}"
            found[trial.number] = done if step else "starting"
    return found


def _watch_live(
    console: Console, campaign: Campaign, total_steps: int, slots: int, stop: threading.Event
) -> None:
    began = time.monotonic()

    def view() -> Group:
        trials = campaign.ledger.trials[-_MOST_ROWS:]
        table = trial_table(campaign, trials, _running_steps(campaign, total_steps))
        return Group(Text(_header(campaign, slots, began)), table)

    with Live(view(), console=console, auto_refresh=False, transient=True) as live:
        while not stop.wait(_REFRESH_SECONDS):
            live.update(view(), refresh=True)


def _watch_plainly(
    console: Console, campaign: Campaign, total_steps: int, slots: int, stop: threading.Event
) -> None:
    began = time.monotonic()
    said: dict[int, Any] = {t.number: t.status for t in campaign.ledger.trials if t.is_over}
    while True:
        finished = stop.wait(_PLAIN_SECONDS)
        for trial in campaign.ledger.trials:
            if said.get(trial.number) == trial.status:
                continue
            said[trial.number] = trial.status
            figures = "  ".join(
                f"{name} {shown(name, value_of(trial.metrics, name))}"
                for name in campaign.sweep.tune.objectives
                if value_of(trial.metrics, name) is not None
            )
            words = "  ".join(
                part
                for part in (
                    f"trial {trial.number} {trial.status}:", describe(trial.point), figures,
                    trial.reason,
                )
                if part
            )  # fmt: skip
            console.print(words, markup=False, highlight=False, soft_wrap=True)
            if trial.is_over:
                console.print(_header(campaign, slots, began), markup=False, highlight=False,
                              soft_wrap=True)  # fmt: skip
        if finished:
            return
