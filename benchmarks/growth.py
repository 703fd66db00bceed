"""Whether a run slows down or grows with its data: the same training on more and more rows.

    python -m benchmarks.growth [--rows 1000 10000 100000] [--steps 60] [--rounds 3] [--json OUT]

Generated triplets, the demo model's tokenizer, a two-layer model (so that the data path is a large
part of a step). Every size is tokenised once. Then the sizes take turns, each in a fresh process
with a warm cache: the time to the first step, tokens a second, and the worker's own memory
(anonymous pages: the mapped token cache belongs to the page cache and is shared).
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
from rich.console import Console
from rich.table import Table

from causal_core.config import Config
from causal_core.config_file import parse_config
from causal_core.data.writer import to_table, write_triplets
from causal_core.generator.generate import generate_dataset

CHUNK = 50_000
WARM_UP = 5


def write_rows(path: Path, rows: int) -> None:
    """Generated triplets with distinct ids."""
    tables = []
    for start in range(0, rows, CHUNK):
        part = generate_dataset({"train": min(CHUNK, rows - start)}, seed=start)["train"]
        tables.append(to_table(replace(t, id=f"{start}-{t.id}") for t in part))
    write_triplets(pa.concat_tables(tables), path)


def write_model(directory: Path) -> None:
    """Two Llama layers under the demo model's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from causal_core.pretrained.demo_model import demo_model_directory

    source = demo_model_directory(None)
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    LlamaForCausalLM(
        LlamaConfig(vocab_size=49152, num_attention_heads=4, num_key_value_heads=2, **sizes)
    ).save_pretrained(directory)
    for file in source.iterdir():
        if "token" in file.name or file.suffix in (".jinja", ".txt"):
            shutil.copy(file, directory)


def config_of(folder: Path, rows: int, steps: int) -> Config:
    """A run over `rows` triplets that stops after a few steps."""
    return parse_config(
        {
            "run": {"dir": str(folder / f"run-{rows}")},
            "model": {"name_or_path": str(folder / "model")},
            "data": {
                "train": [str(folder / f"{rows}.parquet")],
                "cache_dir": str(folder / "cache"),
            },
            "lora": {"rank": 4},
            "train": {"max_steps": steps + WARM_UP, "global_batch": 16, "epochs": 100},
            "checkpoint": {"every_steps": 10**6},
            "resources": {"workers": 0},
            "logging": {"trackers": []},
        }
    )


def worker(path: Path) -> None:
    """Trains in this process and prints what it took."""
    begin = time.perf_counter()
    from causal_core.config_file import load_config
    from causal_core.files import PERFORMANCE_FILE, read_records
    from causal_core.run.context import LocalContext
    from causal_core.run.loop import train

    import torch  # isort: skip

    config = load_config(path)
    directory = Path(config.run.dir)
    imported = time.perf_counter() - begin
    train(config, LocalContext(directory, torch.device("cpu")))
    records = read_records(directory / PERFORMANCE_FILE)
    steps = [r for r in records if "seconds" in r]
    (opened,) = (r for r in records if "opening_seconds" in r)
    rates = [r["nodes_per_second"] for r in steps[WARM_UP:]]
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    anonymous = next(line for line in status.splitlines() if line.startswith("RssAnon"))
    found = {
        "imports": imported,
        "to_first_step": opened["opening_seconds"] + steps[0]["seconds"],
        "tokens_per_second": statistics.median(rates),
        "anonymous_bytes": int(anonymous.split()[1]) * 1024,
    }
    print(json.dumps(found))


def tokenise(folder: Path, rows: int, steps: int) -> float:
    """Writes `rows` triplets and a config; the seconds that tokenising them takes."""
    from causal_core.tokens.run_data import load_run_data

    write_rows(folder / f"{rows}.parquet", rows)
    config = config_of(folder, rows, steps)
    begin = time.perf_counter()
    load_run_data(config)
    seconds = time.perf_counter() - begin
    time.sleep(3)  # a file written just now is read again, whatever is known of it
    load_run_data(config)
    (folder / f"{rows}.yaml").write_text(config.to_yaml(), encoding="utf-8")
    return seconds


def train_once(folder: Path, rows: int) -> dict[str, float]:
    """What a fresh process measured on tokenised triplets."""
    shutil.rmtree(folder / f"run-{rows}", ignore_errors=True)
    command = [sys.executable, "-m", "benchmarks.growth", "--worker", str(folder / f"{rows}.yaml")]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, float] = json.loads(output.splitlines()[-1])
    return found


def spread(values: Sequence[float], form: str) -> str:
    """Median and, of several values, the range."""
    text = format(statistics.median(values), form)
    if len(values) == 1:
        return text
    return f"{text} ({format(min(values), form)} - {format(max(values), form)})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each size")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--worker", type=Path, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker)
        return
    seconds: dict[int, float] = {}
    runs: dict[int, list[dict[str, float]]] = {rows: [] for rows in options.rows}
    with tempfile.TemporaryDirectory(prefix="causal-growth-") as name:
        folder = Path(name)
        write_model(folder / "model")
        for rows in options.rows:
            seconds[rows] = tokenise(folder, rows, options.steps)
        train_once(folder, min(options.rows))  # warms up: page cache, measured costs
        for _ in range(options.rounds):
            for rows, found in runs.items():
                found.append(train_once(folder, rows))
    show(Console(), seconds, runs)
    if options.json:
        results = [{"rows": n, "tokenising": seconds[n], "runs": runs[n]} for n in runs]
        options.json.write_text(json.dumps(results, indent=1), encoding="utf-8")


def show(
    console: Console, seconds: dict[int, float], runs: dict[int, list[dict[str, float]]]
) -> None:
    """The table for people; speeds beside those of the fewest rows, round by round."""
    table = Table()
    for name in ("rows", "tokenised in", "to the first step, s", "tokens/s", "ratio", "MB"):
        table.add_column(name, justify="right")
    fewest = runs[min(runs)]
    for rows, found in runs.items():
        columns = {key: [run[key] for run in found] for key in found[0]}
        rates = columns["tokens_per_second"]
        ratios = [rate / one["tokens_per_second"] for rate, one in zip(rates, fewest, strict=True)]
        table.add_row(
            f"{rows:,}",
            f"{seconds[rows]:.1f} s",
            spread(columns["to_first_step"], ".1f"),
            spread(rates, ",.0f"),
            spread(ratios, ".2f"),
            spread([size / 1e6 for size in columns["anonymous_bytes"]], ".0f"),
        )
    console.print(table)


if __name__ == "__main__":
    main()
