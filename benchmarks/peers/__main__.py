"""Measures the peers on the data sets that have no result yet, then prints the table.

    python -m benchmarks.peers [--data built-in long ...] [--repeats N] [--json OUT]
    python -m benchmarks.peers --table

Everything runs in one process on the same rows and weights, in turns: SmolLM2-135M, LoRA r 16 on
seven projections, float32. A peer is first shown to compute the same loss and gradient. A result is
a line of `benchmarks/results/peers.jsonl`, written when its data set is done: an interruption loses
one data set, and the same command goes on after it.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.machine import commit, versions
from benchmarks.peers import installed
from benchmarks.peers.data_sets import DATA_SETS, DataSet
from benchmarks.peers.objectives import ALL, objective
from benchmarks.peers.results import RESULTS, add_result, already, read_results
from benchmarks.peers.table import markdown
from causal_core.model import matmul
from causal_core.model.device_costs import processor_name

_PACKAGES = ("torch", "transformers", "peft", "accelerate", "trl", "prefix_grouper")
_BY_DEFAULT = ("original", "built-in", "real", "long", "unshared")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ", ".join(DATA_SETS)
    parser.add_argument("--data", nargs="+", default=_BY_DEFAULT, metavar="NAME", help=names)
    parser.add_argument("--objectives", nargs="+", default=ALL, choices=ALL)
    parser.add_argument("--rows", type=int, default=4, help="of a set; of long documents a quarter")
    parser.add_argument("--repeats", type=int, default=3, help="of an objective, at most")
    parser.add_argument("--seconds", type=float, default=45, help="after which no repeat begins")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--results", type=Path, default=RESULTS, help="where results are kept")
    parser.add_argument("--table", action="store_true", help="only print the table")
    parser.add_argument("--json", type=Path, default=None, help="write the table's results here")
    given = parser.parse_args(arguments)
    if unknown := set(given.data) - set(DATA_SETS):
        parser.error(f"no data set {', '.join(sorted(unknown))}; there are {names}")
    if not given.table:
        installed.check()
        measure_all(given)
    results = [r for r in read_results(given.results) if given.table or r["data"] in given.data]
    print(markdown(results))
    if given.json:
        given.json.write_text(json.dumps(results, indent=1), encoding="utf-8")


def measure_all(given: argparse.Namespace) -> None:
    """Each data set that is there and has no result of this commit and machine."""
    quiet()
    if given.threads:
        torch.set_num_threads(given.threads)
    matmul.use(matmul.fastest_library())  # ours alone: the peers' forwards are their libraries' own
    console = Console(stderr=True)
    for number, name in enumerate(given.data, 1):
        data, place = DATA_SETS[name], f"[{number}/{len(given.data)}] {name}"
        asked = identity(data, given)
        if not data.is_there():
            console.print(f"{place}: left out, {data.file} is not there")
        elif already(asked, read_results(given.results)):
            console.print(f"{place}: there already")
        else:
            with console.status(place) as status:
                objectives = measured(
                    data, given, lambda what, at=place: status.update(f"{at}: {what}")
                )
            add_result({**asked, "title": data.title, "objectives": objectives}, given.results)
            console.print(f"{place}: done")


def identity(data: DataSet, given: argparse.Namespace) -> dict[str, Any]:
    """What a result is of."""
    return {
        "data": data.name,
        "settings": {
            "rows": given.rows,
            "repeats": given.repeats,
            "seconds": given.seconds,
            "objectives": list(given.objectives),
        },
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "matrix_products": matmul.in_use(),
        "commit": commit(),
        "versions": versions(_PACKAGES),
    }


def measured(
    data: DataSet, given: argparse.Namespace, progress: Callable[[str], None]
) -> dict[str, Any]:
    """The objectives that the rows have what it takes for, by name."""
    from benchmarks.peers.line_up import LineUp
    from benchmarks.peers.measure import measure

    progress("rows and models")
    rows = data.rows(max(1, given.rows // data.fewer))
    found = {}
    with tempfile.TemporaryDirectory() as directory:
        line_up = LineUp.load(directory)
        for name in given.objectives:
            chosen = objective(name, rows)
            if chosen is None:
                continue
            with line_up.peers(chosen) as peers:
                found[name] = measure(
                    chosen,
                    line_up.ours(chosen),
                    peers,
                    given.repeats,
                    given.seconds,
                    lambda what, name=name: progress(f"{name}, {what}"),
                )
            gc.collect()  # trainers hold themselves in circles, and a model with them
    return found


def quiet() -> None:
    """No bars and notes of the libraries between ours."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module=r"(trl|transformers|torch|accelerate)\b")


if __name__ == "__main__":
    main()
