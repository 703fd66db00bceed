"""What the layout of micro-batches costs on a GPU, counted on a CPU.

    python -m benchmarks.layout [FILE.jsonl[#SPLIT] ...] [--config FILE.yaml] [--json OUT]

Optimizer steps of a GPU preset are cut by rows under dense masks and by flat trees under an
interval mask: micro-batches, nodes, padding, scores that the attention kernels compute. The
operations of a micro-batch (about a kernel's launch each; views and bare allocations are none) are
counted on models of two and of three layers without weights, for all layers of the preset's model,
in its type and quantisation. Copies to the device and waits for it are those of the step as it is,
and as it was when each tensor was copied and each sum was read by itself.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode

from causal_core.config import Config
from causal_core.config_file import load_config
from causal_core.data.writer import to_table, write_triplets
from causal_core.engines.plain import PlainEngine
from causal_core.generator.generate import generate_dataset
from causal_core.loss.objective import Denominators, computed_terms, is_contrastive, needs_of
from causal_core.memory.architectures import architecture_of
from causal_core.memory.kernels import DeviceKernels
from causal_core.memory.shapes import BatchShape
from causal_core.memory.trace import meta_model
from causal_core.memory.tracker import StorageTracker
from causal_core.step.train_step import TrainStep
from causal_core.tokens.dataset import load_dataset
from causal_core.tokens.run_data import load_encoder
from causal_core.tokens.triplet import TripletTokens
from causal_core.trees.intervals import BUCKET
from causal_core.trees.packing import INTERVALS, ROWS, MicroBatch, cut_micro_batches
from causal_core.trees.prefix_tree import TreeBatch
from causal_core.trees.staging import tensors_of

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "reports_schema.jsonl"
LAYOUTS = {"rows": ROWS, "flat": INTERVALS}
_SHORT, _LONG = 2, 3


@dataclass(frozen=True)
class Counted:
    """Means over optimizer steps of one layout."""

    data: str
    layout: str
    micro_batches: float
    nodes: float  # distinct tokens of the micro-batches; what they share is in each of them
    padding: float  # share of the computed nodes
    scores: float  # that attention computes, of one head of one layer
    operations: float
    copies: tuple[float, float]  # to the device: tensor by tensor, and as it is
    waits: tuple[float, float]  # for a number of the device: sum by sum, and as it is


def count(
    config: Config, data: str, steps: Sequence[Sequence[TripletTokens]], layout: str
) -> Counted:
    """Cuts every step's triplets and counts."""
    packing, tokens = LAYOUTS[layout], config.train.micro_batch_tokens
    assert tokens != "auto", "a preset with a number of tokens is counted"
    needs = needs_of(config.loss)
    cut = [cut_micro_batches(triplets, needs, tokens, packing) for triplets in steps]
    batches = [micro.batch for micro_batches in cut for micro in micro_batches]
    most = max(batches, key=lambda batch: batch.input_ids.numel())
    reads = len(computed_terms(config.loss)) + 2 * is_contrastive(config.loss)
    norm, share = 1, 1 / len(steps)
    computed = sum(batch.input_ids.numel() for batch in batches)
    nodes = sum(batch.nodes for batch in batches)
    return Counted(
        data=data,
        layout=layout,
        micro_batches=len(batches) * share,
        nodes=nodes * share,
        padding=1 - nodes / computed,
        scores=sum(map(_scores, batches)) * share,
        operations=operations(config, most) * len(batches) * share,
        copies=(sum(len(tensors_of(batch)) for batch in batches) * share, len(batches) * share),
        waits=(reads * len(batches) * share + norm, 1 + norm),
    )


def _scores(batch: TreeBatch) -> int:
    if batch.intervals is None:
        rows, nodes = batch.input_ids.shape
        return rows * nodes * nodes
    squares = batch.intervals.squares
    return int(squares.mixed_count.sum() + squares.full_count.sum()) * BUCKET**2


class _Operations(TorchDispatchMode):
    """Counts operations that compute."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        returns = func._schema.returns
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in returns)
        allocates = func._schema.name.partition("::")[2].startswith(
            ("empty", "new_empty", "detach")
        )
        self.count += not is_view and not allocates
        return func(*args, **(kwargs or {}))


class _OneMicroBatch(TrainStep):
    """The project's step over one micro-batch."""

    micro_batch: MicroBatch

    def cut(self, triplets: Any) -> list[MicroBatch]:
        return [self.micro_batch]


def operations(config: Config, batch: TreeBatch) -> int:
    """Of forward, loss and backward of a micro-batch of this shape, with all layers."""
    architecture = architecture_of(config.model, config.data.cache_dir)
    layers = architecture.get_text_config().num_hidden_layers
    counts = []
    for few in (_SHORT, _LONG):
        model = meta_model(config, architecture, few)
        kernels = DeviceKernels("cuda", StorageTracker("meta"))
        for layer in model.peft_model.get_base_model().get_decoder().layers:
            for module in layer.children():
                kernels.inside(module)
        train = config.train.model_copy(update={"optimizer": "adamw"})
        meta = torch.device("meta")
        step = _OneMicroBatch(PlainEngine(model, train, meta), config.loss, train, meta, 2**40)
        shape = BatchShape.of(batch)
        step.micro_batch = MicroBatch(shape.meta_batch(), [0])
        with _Operations() as counted:
            step._gradients([], Denominators.of([]), None, [step.micro_batch])  # type: ignore[arg-type]
        counts.append(counted.count)
    short, long = counts
    # FlexAttention is no operation on the meta device: a kernel forward, again where checkpointing
    # recomputes it, and two backward.
    flex = (3 + config.train.gradient_checkpointing) * layers if batch.intervals is not None else 0
    return short + (long - short) * (layers - _SHORT) + flex


def drawn(config: Config, file: str | None, steps: int) -> tuple[str, list[list[TripletTokens]]]:
    """The triplets of some optimizer steps, evenly spaced over a file or over built-in data."""
    encoder, size = load_encoder(config), config.train.global_batch
    with tempfile.TemporaryDirectory() as folder:
        path = file or str(Path(folder) / "built-in.jsonl")
        if file is None:
            rows = generate_dataset({"train": 4 * steps * size}, seed=0)["train"]
            write_triplets(to_table(rows), Path(path))
        data = load_dataset(
            [path], encoder, max_length=config.data.max_length, overlong="drop",
            cache=Path(folder) / "cache",
        )  # fmt: skip
        rows_of = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).tolist()
        chosen = [data.tokens(row) for row in rows_of[: steps * size]]
    name = Path(file.partition("#")[0]).name if file else "built-in"
    return name, [chosen[i : i + size] for i in range(0, len(chosen) - size + 1, size)]


def show(console: Console, config: Config, found: Sequence[Counted]) -> None:
    """The table, as Markdown."""
    train = config.train
    console.print(
        f"{config.model.name_or_path}, {config.model.quantization}, {config.model.dtype}; a step "
        f"of {train.global_batch} triplets in micro-batches of {train.micro_batch_tokens} tokens, "
        f"gradient checkpointing {'on' if train.gradient_checkpointing else 'off'}. Per step:\n"
    )
    titles = (
        "data", "layout", "micro-batches", "nodes", "padding", "scores (1e6)", "operations",
        "copies: one by one -> now", "waits: one by one -> now",
    )  # fmt: skip
    table = Table(box=MARKDOWN)
    for title in titles:
        table.add_column(title)
    for row in found:
        table.add_row(
            row.data, row.layout, f"{row.micro_batches:.2f}", f"{row.nodes:,.0f}",
            f"{row.padding:.1%}", f"{row.scores / 1e6:.2f}", f"{row.operations:,.0f}",
            *(f"{before:.0f} -> {now:.1f}" for before, now in (row.copies, row.waits)),
        )  # fmt: skip
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layout")
    parser.add_argument("files", nargs="*", help="JSON Lines; default: built-in, the reports' data")
    parser.add_argument("--config", default="configs/gpu-24gb.yaml")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    config = load_config(options.config)
    # The demo model's tokenizer: a preset's own is behind a gate.
    tokens = Config(data=config.data, train=config.train)
    files: list[str | None] = [*options.files] or [
        None,
        *([str(SHARED)] if SHARED.is_file() else []),
    ]
    found = []
    for file in files:
        name, steps = drawn(tokens, file, options.steps)
        found += [count(config, name, steps, layout) for layout in LAYOUTS]
    show(Console(width=200), config, found)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in found], indent=2) + "\n")


if __name__ == "__main__":
    main()
