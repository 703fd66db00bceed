"""The sweep as people watch it: a live table of trials, what is best so far, time left."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from causal_core.files import METRICS_FILE, read_records
from ray_jobs.console.plain import plain
from tune_spaces.budget import budget_text
from tune_spaces.campaign import Campaign
from tune_spaces.ledger import Trial, ranked, violations
from tune_spaces.objectives import shown, shown_interval, value_of
from tune_spaces.space import describe, short_titles, show

_REFRESH_SECONDS = 1.0
_LINES_SECONDS = 5.0
_MOST_ROWS = 30  # of a live table; the one at the end has all


@contextlib.contextmanager
def live_table(
    console: Console, campaign: Campaign, total_steps: int, slots: int
) -> Iterator[None]:
    """Shows the sweep while the `with` block runs: a table on a terminal, else a line per event."""
    stop = threading.Event()
    watch = _watch_live if console.is_terminal else _watch_by_lines
    arguments = (console, campaign, total_steps, slots, stop)
    thread = threading.Thread(target=watch, args=arguments, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def show_table(console: Console, campaign: Campaign) -> None:
    """The table at the end, and the refused points by reason."""
    console.print(trial_table(campaign, campaign.ledger.trials, {}))
    for trial in campaign.ledger.trials:
        if trial.status in ("refused", "failed"):
            console.print(
                plain(
                    f"trial {trial.number} {trial.status}: {describe(trial.point)}: {trial.reason}"
                ),
                soft_wrap=True,
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
    # Without lines between the columns, so that five dimensions and two aims fit 80 columns.
    table = Table(title=plain(f"sweep {sweep.directory.name}"), title_justify="left",
                  box=SIMPLE_HEAD, padding=0, show_edge=False)  # fmt: skip
    table.add_column("trial", justify="right")
    states = [_state(campaign, trial, steps) for trial in trials]
    for path, title in zip(paths, short_titles(paths), strict=True):
        values = [show(t.point[path]) for t in trials if path in t.point]
        table.add_column(
            plain(title.replace(" ", "\n"), lines=True),
            justify="right",
            overflow="fold",
            min_width=_longest(values),
        )
    table.add_column("state", overflow="fold", min_width=_longest(states))
    for name in aims:
        table.add_column(name.replace("_", "\n", 1), justify="right", no_wrap=True)
    table.add_column("memory\n(GiB)", justify="right", no_wrap=True)
    for trial, state in zip(trials, states, strict=True):
        mark = "★ " if trial.number in front[:1] else "• " if trial.number in front else ""
        table.add_row(
            f"{mark}{trial.number}",
            *(plain(show(trial.point[path])) if path in trial.point else "" for path in paths),
            plain(state),
            *(_figure(trial, name) for name in aims),
            _memory(trial),
            style=_STYLES.get(trial.status, ""),
        )
    table.caption = (
        "★ best by the first objective   • on the Pareto front\n"
        "dim: 95 % interval; memory as planned, dim: as measured"
    )
    table.caption_justify = "left"
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


def _longest(values: Sequence[str]) -> int:
    """Columns that keep the values of a column whole (words of longer ones are folded)."""
    return min(_WIDEST, max(map(len, values), default=1))


_WIDEST = 12


def _memory(trial: Trial) -> str:
    measured = value_of(trial.metrics, "peak_memory_bytes")
    planned = "" if trial.predicted_bytes is None else f"{trial.predicted_bytes / 2**30:.2f}"
    return planned if measured is None else f"{planned}\n[dim]{measured / 2**30:.2f}"


def _figure(trial: Trial, name: str) -> str:
    value = value_of(trial.metrics, name)
    if value is None:
        return ""
    between = shown_interval(trial.metrics, name, to="–")
    return shown(name, value) + (f"\n[dim]{between}" if between else "")


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
    return text + (f"; budget {budget_text(budgets)} per worker" if budgets else "")


def _running_steps(campaign: Campaign, total_steps: int) -> dict[int, str]:
    found = {}
    for trial in campaign.ledger.trials:
        if trial.status == "running":
            records = read_records(campaign.directory(trial.number) / METRICS_FILE)
            step = max((r["step"] for r in records if r.get("kind") == "train"), default=0)
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

    # Log records stay above the table, unless they go elsewhere (2>FILE).
    redirect = sys.stderr.isatty()
    with Live(
        view(), console=console, auto_refresh=False, transient=True, redirect_stderr=redirect
    ) as live:
        while not stop.wait(_REFRESH_SECONDS):
            live.update(view(), refresh=True)


def _watch_by_lines(
    console: Console, campaign: Campaign, total_steps: int, slots: int, stop: threading.Event
) -> None:
    began = time.monotonic()
    said: dict[int, Any] = {t.number: t.status for t in campaign.ledger.trials if t.is_over}
    while True:
        finished = stop.wait(_LINES_SECONDS)
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
            console.print(plain(words), soft_wrap=True)
            if trial.is_over:
                console.print(plain(_header(campaign, slots, began)),
                              soft_wrap=True)  # fmt: skip
        if finished:
            return
