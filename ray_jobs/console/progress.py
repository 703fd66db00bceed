"""Live progress of work that happens elsewhere, read from the files that it writes.

On a terminal a bar; otherwise a plain line every few seconds, so that job logs stay readable.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from causal_core.files import METRICS_FILE, PERFORMANCE_FILE
from ray_jobs.console.logs import event
from ray_jobs.console.plain import plain
from ray_jobs.console.tail import Tail

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
_LINE_EVERY_SECONDS = 10.0


@contextlib.contextmanager
def training_progress(console: Console, directory: Path, total_steps: int) -> Iterator[None]:
    """Shows a run's steps, loss and validation while the `with` block runs."""
    metrics, speed = Tail(directory / METRICS_FILE), Tail(directory / PERFORMANCE_FILE)
    state: dict[str, Any] = {"step": 0, "text": "starting workers"}

    def poll() -> tuple[int, str]:
        for line in metrics.lines():
            record = _record(line)
            if record.get("kind") == "train":
                state["step"], state["loss"] = record["step"], record["loss"]
            elif record.get("kind") == "validation":
                state["uplift"] = record.get("uplift")
        for line in speed.lines():
            state["speed"] = _record(line).get("triplets_per_second")
        if "loss" in state:
            parts = [f"loss {state['loss']:.3f}"]
            if state.get("uplift") is not None:
                parts.append(f"uplift {state['uplift']:.2f}")
            if state.get("speed"):
                parts.append(f"{state['speed']:.1f} triplets/s")
            state["text"] = "  ".join(parts)
        return state["step"], state["text"]

    with _watch(console, "train", total_steps, poll):
        yield


@contextlib.contextmanager
def evaluation_progress(console: Console, path: Path, total: int) -> Iterator[None]:
    """Shows how much of an evaluation is done; `path` gets one number per piece of work."""
    tail, done = Tail(path, from_start=False), [0]

    def poll() -> tuple[int, str]:
        done[0] += sum(int(line) for line in tail.lines() if line.isdigit())
        return done[0], "answers and scores"

    with _watch(console, "evaluate", total, poll):
        yield


@contextlib.contextmanager
def _watch(
    console: Console, name: str, total: int, poll: Callable[[], tuple[int, str]]
) -> Iterator[None]:
    stop = threading.Event()
    show = _bar if console.is_terminal else _lines
    thread = threading.Thread(target=show, args=(console, name, total, poll, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _bar(
    console: Console,
    name: str,
    total: int,
    poll: Callable[[], tuple[int, str]],
    stop: threading.Event,
) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=18),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[text]}", style="dim"),
    )
    # Log records stay above the bar, unless they go elsewhere (2>FILE).
    redirect = sys.stderr.isatty()
    with Progress(*columns, console=console, redirect_stderr=redirect) as progress:
        task = progress.add_task(name, total=total, text="")
        while True:
            finished = stop.is_set()  # read before the poll, so that the last lines are shown
            done, text = poll()
            progress.update(task, completed=min(done, total), text=text)
            if finished:
                return
            stop.wait(_POLL_SECONDS)


def _lines(
    console: Console,
    name: str,
    total: int,
    poll: Callable[[], tuple[int, str]],
    stop: threading.Event,
) -> None:
    last, shown = 0.0, -1
    while True:
        finished = stop.is_set()
        done, text = poll()
        due = time.monotonic() - last > _LINE_EVERY_SECONDS
        if done != shown and (finished or due):
            done_now = min(done, total)
            event(log, f"{name} progress", done=done_now, total=total, text=text)
            console.print(plain(f"{name} {done_now}/{total}  {text}"))
            last, shown = time.monotonic(), done
        if finished:
            return
        stop.wait(_POLL_SECONDS)


def _record(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
