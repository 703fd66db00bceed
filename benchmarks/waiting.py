"""Seconds that a user waits for: the same commands in one or more checkouts, in turn.

    python -m benchmarks.waiting [CHECKOUT ...] [--repeats 5] [--demo] [--out FILE]

Each checkout has its own `.venv` and is measured with a cache of its own, which a first round that
is not counted fills. What is measured:

    help            causal --help
    help, data      causal data check --help
    plan, new       causal plan on the demo's config, of a rank that was never planned
    plan            the same again
    first step      causal train on the demo's config, from the start to the first step in its log
    demo            causal demo, whole and by its parts (with --demo: minutes; once per checkout)
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
_PARTS = ("1/4", "2/4", "3/4", "4/4", "The demo took")
_PATIENCE_SECONDS = 900


class Checkout:
    """The commands of one checkout, with a cache and run directories of its own."""

    def __init__(self, directory: Path, scratch: Path) -> None:
        self.directory, self.scratch = directory.resolve(), scratch
        self.command = [str(self.directory / ".venv/bin/python"), "-m", "ray_jobs.cli"]
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(self.directory),
            "CAUSAL_RAY_CACHE": str(scratch / "cache"),
        }
        self.runs = 0
        self.rank = 16
        self.config = self._config()

    def _config(self) -> Path:
        data = self.scratch / "data"
        code = (
            "import sys; from pathlib import Path; from ray_jobs.demo import _generate; "
            "_generate(Path(sys.argv[1]), 0)"
        )
        python = self.command[0]
        subprocess.run([python, "-c", code, str(data)], env=self.environment, check=True)
        config = self.scratch / "demo.yaml"
        config.write_text(
            (self.directory / "ray_jobs/presets/demo.yaml").read_text()
            + f"\ndata: {{train: {data}/train.jsonl, validation: {data}/validation.jsonl}}\n"
        )
        return config

    def seconds(self) -> Iterator[tuple[str, float]]:
        """One round of everything but the demo."""
        yield "help", self._seconds_of("--help")
        yield "help, data", self._seconds_of("data", "check", "--help")
        self.rank += 1
        plan = ("plan", str(self.config), f"lora.rank={self.rank}")
        yield "plan, new", self._seconds_of(*plan)
        yield "plan", self._seconds_of(*plan)
        yield "first step", self._first_step()

    def demo(self) -> Iterator[tuple[str, float]]:
        """The demo's parts; the model is in the cache by now, as it is in a second demo."""
        begin = time.monotonic()
        process = subprocess.Popen(
            [*self.command, "demo", "--dir", str(self.scratch / "demo")],
            env={**self.environment, "PYTHONUNBUFFERED": "1"},
            cwd=self.scratch, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        before, part = begin, "demo, start"
        for line in process.stdout:
            if line.startswith(_PARTS):
                now = time.monotonic()
                yield part, now - before
                before, part = now, f"demo, {line.split(':')[0].strip()}"
        if process.wait() != 0:
            raise SystemExit(f"the demo of {self.directory} failed")
        yield "demo, whole", time.monotonic() - begin

    def _seconds_of(self, *arguments: str) -> float:
        begin = time.monotonic()
        done = subprocess.run(
            [*self.command, *arguments],
            env=self.environment, cwd=self.scratch, capture_output=True, text=True,
        )  # fmt: skip
        seconds = time.monotonic() - begin
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(arguments)} in {self.directory} failed:\n{done.stderr}")
        return seconds

    def _first_step(self) -> float:
        self.runs += 1
        run = self.scratch / f"run-{self.runs}"
        begin = time.monotonic()
        process = subprocess.Popen(
            [*self.command, "train", str(self.config), f"run.dir={run}"],
            env=self.environment, cwd=self.scratch,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        log, seconds = run / "metrics.jsonl", None
        while seconds is None:
            if log.is_file() and '"train"' in log.read_text():
                seconds = time.monotonic() - begin
            elif process.poll() is not None or time.monotonic() - begin > _PATIENCE_SECONDS:
                process.kill()
                raise SystemExit(f"no first step in {self.directory}:\n{process.communicate()[1]}")
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        process.communicate()
        return seconds


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints a table; times of checkouts stand beside each other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("checkouts", nargs="*", type=Path, default=[HERE])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--demo", action="store_true")
    parser.add_argument("--out", type=Path, help="Gets all seconds as JSON.")
    asked = parser.parse_args(arguments)
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="causal-waiting-") as folder:
        checkouts = []
        for number, directory in enumerate(asked.checkouts):
            (scratch := Path(folder) / str(number)).mkdir()
            checkouts.append(Checkout(directory, scratch))
        for number in range(asked.repeats + 1):
            for checkout in checkouts:
                for what, seconds in checkout.seconds():
                    print(f"{checkout.directory}  {what}: {seconds:.2f} s", file=sys.stderr)
                    if number:  # the first round fills the caches
                        times = found.setdefault(what, {})
                        times.setdefault(str(checkout.directory), []).append(seconds)
        for checkout in checkouts if asked.demo else ():
            for what, seconds in checkout.demo():
                found.setdefault(what, {}).setdefault(str(checkout.directory), []).append(seconds)
    if asked.out is not None:
        asked.out.write_text(json.dumps(found, indent=1) + "\n")
    print("\n".join(table(found)))


def table(found: dict[str, dict[str, list[float]]]) -> list[str]:
    """Markdown: a row for each command and checkout."""
    lines = ["| command | checkout | min | median | max | n |", "|---|---|---|---|---|---|"]
    for what, times in found.items():
        for checkout, seconds in times.items():
            middle = statistics.median(seconds)
            lines.append(
                f"| {what} | {checkout} | {min(seconds):.2f} s | {middle:.2f} s | "
                f"{max(seconds):.2f} s | {len(seconds)} |"
            )
    return lines


if __name__ == "__main__":
    main()
