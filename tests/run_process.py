"""A run as a process of its own: started as a user starts it, watched, killed, waited for.

For tests of real faults. What a run does is read from the files that it writes, and its processes
are found by the titles that Ray gives them.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from causal_core.checkpoints.contents import verify_checkpoint
from causal_core.files import METRICS_FILE

WORKER, CONTROLLER = "ray::RayTrainWorker", "ray::TrainController"
FILES = ("adapter_model.safetensors", "causal_projection.safetensors", "optimizer.safetensors")
PATIENCE_SECONDS = 1200.0  # for what hangs; a machine that others use may need minutes
# What no command prints into a file or a pipe: colours, and what is Ray's to say.
RAYS_OWN = re.compile(
    r"\x1b|Traceback|\(raylet|pid=\d|ray::|\[\d{4}-\d\d-\d\d|site-packages|docs\.ray\.io|Trial run_"
)


@dataclass
class Command:
    """One `python -m ray_jobs.train`, watched through the files that it writes."""

    config: Path
    directory: Path
    temporary: Path
    process: subprocess.Popen | None = None
    overrides: tuple[str, ...] = ()
    killed_at: float = 0.0
    steps_repeated: list[int] = field(default_factory=list)
    seconds_to_new_step: list[float] = field(default_factory=list)

    def start(self) -> Command:
        environment = {
            **os.environ,
            "TMPDIR": str(self.temporary / "t"),
            "RAY_TMPDIR": str(self.temporary),
        }
        environment.pop("RAY_ADDRESS", None)
        (self.temporary / "t").mkdir(exist_ok=True)
        self.output = (self.temporary / "output").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ray_jobs.train", "--config", str(self.config),
             "--no-evaluate", f"run.dir={self.directory}", *self.overrides],
            env=environment, stdout=self.output, stderr=subprocess.STDOUT,
        )  # fmt: skip
        return self

    def text(self) -> str:
        return Path(self.output.name).read_text()

    def steps(self) -> list[int]:
        return [record["step"] for record in train_lines(self.directory)]

    def wait_until(self, condition, what: str, interval: float = 0.02):
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end:
            if (value := condition()) is not None and value is not False:
                return value
            if self.process.poll() is not None:
                raise AssertionError(f"ended before {what}:\n{self.text()}")
            time.sleep(interval)
        raise AssertionError(f"no {what} in {PATIENCE_SECONDS} s:\n{self.text()}")

    def wait_for_step(self, step: int) -> int:
        return self.wait_until(
            lambda: next((s for s in self.steps()[-1:] if s >= step), None), f"step {step}"
        )

    def processes(self, title: str) -> list[psutil.Process]:
        """The Ray processes of this command with the given title."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        found = [p for p in children if any(title in part for part in _title(p))]
        assert found, f"no {title} to kill"
        return found

    def kill(self, title: str, victims: list[psutil.Process] | None = None) -> None:
        """kill -9 of `victims`; default: of all with this title."""
        for victim in victims or self.processes(title):
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.send_signal(signal.SIGKILL)
        self.killed_at = time.monotonic()

    def kill_in(self, title: str, happens: Callable[[], object], what: str) -> None:
        """kill -9 in the middle of what may last milliseconds: the processes are stopped first, and
        go on until the next time where it was over by then."""
        victims = self.processes(title)
        while True:
            self.wait_until(lambda: happens() or None, what, interval=0.0002)
            for victim in victims:
                victim.suspend()
            self.wait_until(lambda: all(map(_is_stopped, victims)), f"{title} to stand still")
            if happens():
                break
            for victim in victims:
                victim.resume()
        self.kill(title, victims)

    def wait_for_recovery(self, last: int) -> None:
        """Waits until a step is logged again, after the kill truncated the log."""
        first = self.wait_until(
            lambda: next((s for s in self.steps()[-1:] if s < last), None), "a resume"
        )
        self.seconds_to_new_step.append(time.monotonic() - self.killed_at)
        self.steps_repeated.append(last - first + 1)

    def finish(self, code: int = 0) -> None:
        try:
            found = self.process.wait(timeout=PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.close()
            raise AssertionError(f"no end in {PATIENCE_SECONDS} s:\n{self.text()}") from None
        assert found == code, self.text()
        assert not RAYS_OWN.search(self.text()), self.text()

    def close(self) -> None:
        """Ends a command that a test gave up, and waits for the Ray that it had started, which
        writes into its temporary directory until it follows."""
        if self.process is None or self.process.poll() is not None:
            return
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.wait()
        _, alive = psutil.wait_procs(children, timeout=60)
        for child in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(alive)

    def run(self, code: int = 0) -> None:
        self.start().finish(code)

    def final_state(self) -> dict[str, str]:
        newest = sorted((self.directory / "checkpoints").glob("step-*"))[-1]
        files = verify_checkpoint(newest).files
        lines = (self.directory / METRICS_FILE).read_text().splitlines()
        train = [line for line in lines if '"kind": "train"' in line]
        return {name: files[name].sha256 for name in FILES} | {"metrics": "\n".join(train)}


def _title(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        return process.cmdline()
    return []


def _is_stopped(process: psutil.Process) -> bool:
    return process.status() == psutil.STATUS_STOPPED


def wait_until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end, f"no {what} in {PATIENCE_SECONDS} s"
        time.sleep(0.1)


def train_lines(run: Path) -> list[dict[str, Any]]:
    """The training records of a run's log, which may end in the middle of a line."""
    path = run / METRICS_FILE
    if not path.is_file():
        return []
    whole = path.read_text().rpartition("\n")[0].splitlines()
    return [record for record in map(json.loads, whole) if record["kind"] == "train"]


def last_step(run: Path) -> int:
    """The last step that a run has logged; 0 before the first."""
    return max((record["step"] for record in train_lines(run)), default=0)


def assert_same_course(expected: Path, found: Path) -> None:
    """The same batches and, within rounding, the same losses (invariant I4)."""
    for one, other in zip(train_lines(expected), train_lines(found), strict=True):
        assert one["samples"] == other["samples"]
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
