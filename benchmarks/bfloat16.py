"""What products in bfloat16 (`train.matmul`) give on this processor, and what they cost in digits.

    python -m benchmarks.bfloat16 [FILE] [--triplets 8] [--rounds 5] [--json OUT]

The training step on the demo model in three ways, in turns in one process: float32 by the faster
library, the same with products of frozen weights in bfloat16, and a model that is bfloat16 as a
whole (`model.dtype`). Each gradient is held against the one in float64.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from benchmarks.step import LOSS, gradient, measure, sample, tree_step
from causal_core.config import LoraSection, ModelSection
from causal_core.model import matmul
from causal_core.model.causal_model import CausalModel, build_model
from causal_core.model.device_costs import processor_name
from causal_core.model.matmul import bfloat16_speed, fastest_library
from causal_core.pretrained.loading import load_base

FLOAT32, PRODUCTS, WHOLE = "float32", "train.matmul=bfloat16", "model.dtype=bfloat16"


def model_of(dtype: Literal["float32", "bfloat16"]) -> CausalModel:
    """The demo model with an adapter that is not at its start, where half of it has no gradient."""
    base = load_base(ModelSection(dtype=dtype), torch.device("cpu"))
    model = build_model(base, LoraSection(dropout=0.0), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.trainable_parameters().items():
            if "lora_B" in name:
                parameter.normal_(0, 0.01, generator=generator)
    return model.train()


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All measurements as one JSON-able tree."""
    triplets, source = sample(options.file, options.triplets)
    tree = tree_step(options.micro_batch_tokens)
    library = fastest_library()
    plain, whole = model_of("float32"), model_of("bfloat16")
    ways = {FLOAT32: (plain, False), PRODUCTS: (plain, True), WHOLE: (whole, False)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    gradients: dict[str, Tensor] = {}
    for _ in track(range(options.rounds + 1), "measuring", console=Console(stderr=True)):
        for name, (model, in_bfloat16) in ways.items():
            with matmul.using(library, in_bfloat16):
                taken, _ = measure(model, lambda model=model: tree(model, triplets, LOSS))  # type: ignore[misc]
            if name in gradients:  # the first warms up
                seconds[name].append(taken)
            gradients[name] = gradient(model)
    exact_model = plain.double()
    measure(exact_model, lambda: tree(exact_model, triplets, LOSS))
    exact = gradient(exact_model)
    return {
        "data": source,
        "triplets": len(triplets),
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "library": library,
        "product_speed": bfloat16_speed(library),
        "seconds": seconds,
        "speed": {
            name: [a / b for a, b in zip(seconds[FLOAT32], times, strict=True)]
            for name, times in seconds.items()
        },
        "gradient_error": {
            name: float((found - exact).norm() / exact.norm()) for name, found in gradients.items()
        },
        "gradient_cosine": {
            name: float(torch.cosine_similarity(found, exact, dim=0))
            for name, found in gradients.items()
        },
    }


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} - {max(values):.2f})"


def show(console: Console, result: dict[str, Any]) -> None:
    """The table for people."""
    console.print(
        f"{result['processor']}, {result['threads']} threads, torch {result['torch']}: one product "
        f"in bfloat16 is {result['product_speed']:.2f} times as fast as by {result['library']} in "
        f"float32. A step of {result['triplets']} triplets of {result['data']}; medians (least - "
        "most); gradients against float64."
    )
    table = Table()
    table.add_column("", no_wrap=True)
    for column in ("seconds", "speed", "error of the gradient", "1 - cosine"):
        table.add_column(column, justify="right")
    for name, times in result["seconds"].items():
        table.add_row(
            name,
            _spread(times),
            _spread(result["speed"][name]),
            f"{result['gradient_error'][name]:.1e}",
            f"{1 - result['gradient_cosine'][name]:.1e}",
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", nargs="?", help="triplets; the reports' or generated by default")
    parser.add_argument("--triplets", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--micro-batch-tokens", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--json", type=Path, default=None, help="write all numbers here")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    result = run(options)
    show(Console(), result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
