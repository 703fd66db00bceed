"""What Ray costs: optimizer steps a second inside a Ray worker against the same loop without Ray,
and where the time from `causal train` to the first step goes.

    python -m benchmarks.ray_overhead [--steps 10] [--warm-up 15] [--rounds 2] [--json OUT]

Runs of the demo model on generated triplets, each a process of its own, in turns. A step's time is
the loop's own record (`performance.jsonl`). The first steps of a run do not count: for half a
minute Ray's own processes are still starting beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from causal_core.config_file import parse_config
from causal_core.data.writer import to_table, write_triplets
from causal_core.device import available_cores
from causal_core.files import PERFORMANCE_FILE, read_records
from causal_core.generator.generate import generate_dataset

PARTS = ("imports, plan, Ray start", "worker: data and model", "first step")


def run(folder: Path, name: str, workers: int, options: argparse.Namespace) -> dict[str, Any]:
    """One run: seconds of each counted step and the parts of its start-up."""
    config = parse_config(
        {
            "run": {"dir": str(folder / name)},
            "data": {"train": [str(folder / "train.jsonl")]},
            "train": {
                "global_batch": options.global_batch,
                "max_steps": options.steps + options.warm_up,
            },
            # Elastic: one worker alone would be a process without Ray.
            "resources": {"workers": [1, 1] if workers else 0, "threads": available_cores()},
            "logging": {"trackers": []},
        }
    )
    path = folder / f"{name}.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    begin = time.time()
    subprocess.run(
        [sys.executable, "-m", "ray_jobs.train", "--config", str(path), "--no-evaluate"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    records = read_records(folder / name / PERFORMANCE_FILE)
    steps = [r for r in records if "seconds" in r]
    (opened,) = (r for r in records if "opening_seconds" in r)
    started = opened["time"] - opened["opening_seconds"]
    return {
        "seconds": [r["seconds"] for r in steps[options.warm_up :]],
        "start": [started - begin, opened["opening_seconds"], steps[0]["time"] - opened["time"]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=10, help="counted steps of each run")
    parser.add_argument("--warm-up", type=int, default=15, help="steps before them")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--global-batch", type=int, default=4)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {"without Ray": [], "Ray worker": []}
    with tempfile.TemporaryDirectory(prefix="causal-bench-") as name:
        folder = Path(name)
        count = options.global_batch * (options.steps + options.warm_up)
        rows = generate_dataset({"train": count}, seed=0)["train"]
        write_triplets(to_table(rows), folder / "train.jsonl")
        run(folder, "warm-up", 0, options)  # token cache, page cache
        for number in range(options.rounds):
            for workers, way in enumerate(found):
                found[way].append(run(folder, f"{workers}-{number}", workers, options))
    console = Console()
    medians = {w: [statistics.median(r["seconds"]) for r in runs] for w, runs in found.items()}
    ratios = [a / b for a, b in zip(*medians.values(), strict=True)]
    table = Table()
    for column in ("", "seconds a step, by round", *PARTS, "to the first step"):
        table.add_column(column)
    for way, runs in found.items():
        parts = [statistics.median(r["start"][i] for r in runs) for i in range(len(PARTS))]
        table.add_row(
            way,
            " ".join(f"{m:.2f}" for m in medians[way]),
            *(f"{part:.1f} s" for part in (*parts, sum(parts))),
        )
    console.print(table)
    console.print(
        f"speed in the Ray worker: {statistics.median(ratios):.1%} of the loop without Ray "
        f"({min(ratios):.1%} - {max(ratios):.1%})"
    )
    if options.json:
        options.json.write_text(json.dumps({"runs": found, "ratios": ratios}, indent=1))


if __name__ == "__main__":
    main()
