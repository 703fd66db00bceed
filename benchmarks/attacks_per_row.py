"""What k attacks in one row cost, in nodes and seconds, against k rows with one of them each.

    python -m benchmarks.attacks_per_row [--rows 4] [--repeats 3] [--cpu-seconds]

Generated rows with the default loss, forward and backward of SmolLM2-135M in float32, in turns. The
k rows are those of the same triplets and attacks; they meet in no micro-batch, as rows that a
shuffle has parted do not, so each computes S, U and the benign answer again.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.step import tree_step
from causal_core.config import Config, LoraSection, LossSection, ModelSection
from causal_core.data.writer import to_table, write_triplets
from causal_core.generator.generate import generate_dataset
from causal_core.loss.objective import needs_of
from causal_core.model import matmul
from causal_core.model.causal_model import CausalModel, build_model
from causal_core.model.matmul import fastest_library
from causal_core.pretrained.loading import load_base
from causal_core.tokens.dataset import load_dataset
from causal_core.tokens.run_data import load_encoder
from causal_core.tokens.triplet import TripletTokens
from causal_core.trees.packing import FLAT, cut_micro_batches

LOSS = LossSection()
Clock = Callable[[], float]


@dataclass
class Cost:
    """Of all rows together, for one number of attacks."""

    attacks: int
    nodes: int  # tree nodes of rows with that many attacks
    apart_nodes: int  # of as many rows with one attack each
    seconds: list[float] = field(default_factory=list)  # by repeat
    apart_seconds: list[float] = field(default_factory=list)

    def ratios(self) -> list[float]:
        """How many times as long the rows with one attack take, by repeat."""
        return [b / a for a, b in zip(self.seconds, self.apart_seconds, strict=True)]


def with_attacks(rows: Sequence[TripletTokens], count: int) -> list[TripletTokens]:
    """The rows with the first `count` of their attacks."""
    return [replace(row, injections=row.injections[:count]) for row in rows]


def costs(
    model: CausalModel,
    rows: Sequence[TripletTokens],
    numbers: Sequence[int],
    repeats: int,
    micro_batch_tokens: int,
    clock: Clock,
    done: Callable[[], None] = lambda: None,
) -> list[Cost]:
    """Forward and backward of the rows with each number of attacks, and of one attack each.

    Args:
        rows: Each with as many attacks as the largest of `numbers`.
        clock: Seconds.
        done: Called after each measurement: `repeats` times the largest number + `len(numbers)`.
    """
    step, needs = tree_step(micro_batch_tokens), needs_of(LOSS)

    def nodes(chosen: Sequence[TripletTokens]) -> int:
        cut = cut_micro_batches(chosen, needs, micro_batch_tokens, FLAT)
        return sum(micro.batch.nodes for micro in cut)

    def seconds(chosen: Sequence[TripletTokens]) -> float:
        model.zero_grad(set_to_none=True)
        begin = clock()
        step(model, chosen, LOSS)
        return clock() - begin

    # k rows with one attack each: all rows with their first attack, with their second, ...
    apart = [[row.attacked(number) for row in rows] for number in range(max(numbers))]
    apart_nodes = [nodes(chosen) for chosen in apart]
    found = [Cost(k, nodes(with_attacks(rows, k)), sum(apart_nodes[:k])) for k in numbers]
    seconds(with_attacks(rows, max(numbers)))  # warms up
    for _ in range(repeats):
        one_by_one = []
        for chosen in apart:
            one_by_one.append(seconds(chosen))
            done()
        for cost in found:
            cost.seconds.append(seconds(with_attacks(rows, cost.attacks)))
            cost.apart_seconds.append(sum(one_by_one[: cost.attacks]))
            done()
    return found


def sample(count: int, attacks: int) -> list[TripletTokens]:
    """Generated rows with that many attacks each."""
    triplets = generate_dataset({"train": count}, seed=0, attacks_per_row=attacks)["train"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "generated.jsonl"
        write_triplets(to_table(triplets), path)
        data = load_dataset(
            [str(path)], load_encoder(Config()), max_length=2048, overlong="drop",
            cache=Path(folder) / "cache",
        )  # fmt: skip
        return [row for index in range(len(data)) if len((row := data.tokens(index)).injections)
                == attacks]  # fmt: skip


def show(console: Console, found: Sequence[Cost], rows: int) -> None:
    """The table for people, of one row."""
    table = Table()
    columns = ("k", "nodes", "nodes of k rows", "seconds", "seconds of k rows", "k rows / one")
    for column in columns:
        table.add_column(column, justify="right")
    for cost in found:
        table.add_row(
            str(cost.attacks),
            f"{cost.nodes / rows:.0f}",
            f"{cost.apart_nodes / rows:.0f}",
            _spread([s / rows for s in cost.seconds]),
            _spread([s / rows for s in cost.apart_seconds]),
            _spread(cost.ratios()),
        )
    console.print(table)


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} - {max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--attacks", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--micro-batch-tokens", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument(
        "--cpu-seconds", action="store_true",
        help="count what the processor spent, where the machine does other things, too",
    )  # fmt: skip
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    console = Console(width=100)
    rows = sample(options.rows, max(options.attacks))
    model = build_model(
        load_base(ModelSection(), torch.device("cpu")), LoraSection(dropout=0.0), 0
    ).train()
    matmul.use(fastest_library())
    steps = options.repeats * (max(options.attacks) + len(options.attacks))
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("measuring", total=steps)
        found = costs(
            model, rows, options.attacks, options.repeats, options.micro_batch_tokens,
            time.process_time if options.cpu_seconds else time.perf_counter,
            lambda: progress.advance(task),
        )  # fmt: skip
    kind = "CPU seconds" if options.cpu_seconds else "seconds"
    console.print(
        f"{len(rows)} rows, {options.repeats} repeats, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}; {kind}, per row: median (range)."
    )
    show(console, found, len(rows))


if __name__ == "__main__":
    main()
