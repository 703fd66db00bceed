"""What is left of the training step's speed on a machine that does other things, too.

    python -m benchmarks.sharing [FILE] [--triplets 4] [--rounds 5] [--minutes 10] [--json OUT]

One process per way of waiting (`causal_core/openmp.py`), and one with a single thread, which has
nobody to wait for, hold the demo model, and all take a step in turns: with nothing beside it,
beside one busy program of two threads, and beside one of eight, which this program starts and ends.
Those threads compute without pause, and every thread has the same claim to a core: with t threads
on c cores beside b others, c / (t + b) of the speed is fair.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.step import LOSS, models, sample, tree_step
from causal_core.device import available_cores, prepare_device
from causal_core.model import matmul
from causal_core.model.device_costs import processor_name
from causal_core.model.matmul import fastest_library
from causal_core.openmp import SETTINGS

OURS, LIBRARY, ONE_THREAD = "ours", "libgomp's own", "one thread"
BUSY_THREADS = (0, 2, 8)
_LIBGOMP_SPINS = "300000"  # its default, which it documents
_ALONE = 3  # steps in a row with nothing beside them: they are short

# Ends with the pipe to its standard input, so it cannot be left behind.
_BUSY = """
import hashlib, os, sys, threading

def compute():
    while True:
        hashlib.pbkdf2_hmac("sha256", b"password", b"salt", 10**6)

for _ in range(int(sys.argv[1])):
    threading.Thread(target=compute, daemon=True).start()
sys.stdin.read()
os._exit(0)
"""


class Stepper:
    """A process that takes training steps when it is told to."""

    def __init__(
        self, options: argparse.Namespace, environment: dict[str, str], threads: int
    ) -> None:
        file = [] if options.file is None else [options.file]
        arguments = [*file, "--step", "--triplets", str(options.triplets)]
        arguments += ["--threads", str(threads)]
        inherited = {k: v for k, v in os.environ.items() if k not in SETTINGS}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.sharing", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**inherited, **environment},
            text=True,
        )

    def wait(self) -> str:
        """The next line that it prints."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a process that was to take steps has ended: see above")
        return line

    def step(self) -> tuple[float, float]:
        """Seconds of one step, and the CPU seconds that it took."""
        assert self._process.stdin is not None
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        seconds, cpu = json.loads(self.wait())
        return seconds, cpu

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def take_steps(options: argparse.Namespace) -> None:
    """The process of a `Stepper`."""
    prepare_device(torch.device("cpu"), options.threads)
    triplets, _ = sample(options.file, options.triplets)
    model, _ = models()
    matmul.use(fastest_library())
    step = tree_step(2048)

    def timed() -> tuple[float, float]:
        model.zero_grad(set_to_none=True)
        begin, cpu = time.perf_counter(), time.process_time()
        step(model, triplets, LOSS)
        return time.perf_counter() - begin, time.process_time() - cpu

    timed()
    print("ready", flush=True)
    for _ in sys.stdin:
        print(json.dumps(timed()), flush=True)


@contextlib.contextmanager
def busy(threads: int) -> Iterator[None]:
    """A program of that many busy threads runs while the context lasts."""
    if not threads:
        yield
        return
    command = [sys.executable, "-c", _BUSY, str(threads)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        time.sleep(0.5)  # until it computes
        try:
            yield
        finally:
            process.kill()


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All measurements as one JSON-able tree."""
    ways: dict[str, dict[str, str]] = {OURS: {}, LIBRARY: {"GOMP_SPINCOUNT": _LIBGOMP_SPINS}}
    ways |= {f"{spins} spins": {"GOMP_SPINCOUNT": spins} for spins in options.spins}
    if options.threads > 1:
        ways[ONE_THREAD] = {}
    load = os.getloadavg()[0]
    steppers: dict[str, Stepper] = {}
    seconds: dict[str, dict[int, list[float]]] = {}
    cpu: dict[str, dict[int, list[float]]] = {}
    try:
        for name, environment in ways.items():
            threads = 1 if name == ONE_THREAD else options.threads
            steppers[name] = Stepper(options, environment, threads)
            steppers[name].wait()
            seconds[name], cpu[name] = ({b: [] for b in BUSY_THREADS} for _ in range(2))
        with Progress(console=Console(stderr=True)) as progress:
            task = progress.add_task("measuring", total=options.rounds * len(BUSY_THREADS))
            end = time.monotonic() + 60 * options.minutes
            for finished in range(options.rounds):
                if finished and time.monotonic() > end:
                    break
                for beside in BUSY_THREADS:
                    with busy(beside):
                        for name, stepper in steppers.items():
                            if name == OURS:
                                stepper.step()  # it finds out in this one who is beside it
                            for _ in range(1 if beside else _ALONE):
                                wall, own = stepper.step()
                                seconds[name][beside].append(wall)
                                cpu[name][beside].append(own)
                                # Minutes, where threads spin beside many: seen as it comes.
                                progress.print(f"beside {beside}, {name}: {wall:.2f} s")
                    progress.advance(task)
    finally:
        for stepper in steppers.values():
            stepper.end()
    alone = min(statistics.median(found[0]) for found in seconds.values())
    cores = available_cores()
    return {
        "processor": processor_name(),
        "cores": cores,
        "threads": options.threads,
        "torch": torch.__version__,
        "load_before": load,
        "triplets": options.triplets,
        "fair_share": {b: min(1.0, cores / (options.threads + b)) for b in BUSY_THREADS},
        "seconds": seconds,
        "cpu_seconds": cpu,
        # Of the fastest way's speed alone, so that what is lost alone shows as well.
        "share": {
            name: {b: [alone / s for s in times] for b, times in found.items()}
            for name, found in seconds.items()
        },
    }


def _spread(values: Sequence[float], form: str) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:{form}} ({low:{form}} - {high:{form}})"


def show(console: Console, result: dict[str, Any]) -> None:
    """The table for people."""
    console.print(
        f"{result['processor']}, {result['cores']} cores, {result['threads']} threads, torch "
        f"{result['torch']}; load before: {result['load_before']:.1f}. A step of "
        f"{result['triplets']} triplets; medians (least - most)."
    )
    table = Table()
    for column in ("beside", "way of waiting", "seconds", "CPU s", "of the speed alone", "fair"):
        table.add_column(column)
    for beside, fair in result["fair_share"].items():
        for name in result["seconds"]:
            table.add_row(
                f"{beside} busy threads" if beside else "nothing",
                name,
                _spread(result["seconds"][name][beside], ".2f"),
                f"{statistics.median(result['cpu_seconds'][name][beside]):.2f}",
                _spread(result["share"][name][beside], ".0%"),
                f"{fair:.0%}",
            )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", nargs="?", help="triplets; the reports' or generated by default")
    parser.add_argument("--triplets", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=10.0, help="no round begins after them")
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--spins", nargs="*", default=[], help="further values of GOMP_SPINCOUNT")
    parser.add_argument("--json", type=Path, default=None, help="write all numbers here")
    parser.add_argument("--step", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        take_steps(options)
        return
    result = run(options)
    show(Console(), result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
