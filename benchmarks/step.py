"""The optimizer step's forward and backward, side by side with the ways it is usually written.

    python -m benchmarks.step [FILE.jsonl[#SPLIT]] [--triplets 16] [--repeats 5] [--json OUT]

Everything runs in one process on the same triplets, interleaved, with the reports' loss, LoRA
r 16 on seven projections and the causal projection head, in float32. Compared are the medians of
the repeats; the spread stands beside them. (a) costs the same for any triplet, so two are measured.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.rivals import (
    Step,
    padded_step,
    reports_step,
    separate_forwards_step,
    unpadded_step,
)
from causal_core.config import Config, LoraSection, LossSection, ModelSection
from causal_core.data.writer import to_table, write_triplets
from causal_core.generator.generate import generate_dataset
from causal_core.loss.objective import (
    Denominators,
    micro_batch_loss,
    needs_of,
    needs_reference,
    reference_hidden,
)
from causal_core.memory.tracker import StorageTracker
from causal_core.model import matmul
from causal_core.model.causal_model import CausalModel, build_model
from causal_core.model.matmul import fastest_library
from causal_core.pretrained.loading import load_base
from causal_core.tokens.dataset import load_dataset
from causal_core.tokens.run_data import load_encoder
from causal_core.tokens.triplet import TripletTokens
from causal_core.trees.packing import FLAT, cut_micro_batches

LOSS = LossSection(preset="contrastive")
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "reports_schema.jsonl"
NAMES = {
    "a": "the reports' step, padded to 768",
    "b": "three in one, padded to longest",
    "c": "three separate forwards",
    "d": "unpadded, nothing shared",
    "e": "prefix trees (ours)",
}


@dataclass
class Row:
    """What one way of computing the step measured."""

    name: str
    triplets: int
    seconds: list[float]
    peak_bytes: int

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def rate(self) -> float:
        """Triplets a second."""
        return self.triplets / self.median


def tree_step(micro_batch_tokens: int) -> Step:
    """(e) Ours: what `TrainStep` runs, cut included."""

    def step(model: CausalModel, triplets: Sequence[TripletTokens], loss: LossSection) -> float:
        total, counts = 0.0, Denominators.of(triplets)
        for micro in cut_micro_batches(triplets, needs_of(loss), micro_batch_tokens, FLAT):
            reference = reference_hidden(model, micro.batch) if needs_reference(loss) else None
            output = model(micro.batch)
            value, _ = micro_batch_loss(model, output, micro.batch, loss, counts, reference)
            value.backward()
            total += float(value.detach())
        return total

    return step


def useful_flops(model: CausalModel, triplets: Sequence[TripletTokens]) -> dict[str, float]:
    """FLOPs that the gradient of distinct tokens needs, a multiply-add counted as two.

    Per tree node 4 P_linear (forward, gradient of the input: the base is frozen) + 6 P_lora
    (forward, gradients of the input and the weights); 12 h d per score of a node with an ancestor
    or itself (two products forward, four backward); 4 V H per label position; 6 P_head per pooled
    branch. Norms, activations and recomputation count nothing.
    """
    (micro,) = cut_micro_batches(triplets, needs_of(LOSS), 10**9, FLAT)
    config = model.peft_model.get_base_model().config
    trained = model.trainable_parameters()
    lora = sum(p.numel() for n, p in trained.items() if "lora_" in n)
    head = sum(p.numel() for n, p in trained.items() if n.startswith("projection."))
    linear = sum(
        p.numel() for n, p in model.named_parameters() if ".base_layer.weight" in n and p.ndim == 2
    )
    width = config.num_attention_heads * (config.hidden_size // config.num_attention_heads)
    scores = int((micro.batch.position_ids + 1).sum())
    return {
        "linear": 4.0 * linear * micro.batch.nodes,
        "lora": 6.0 * lora * micro.batch.nodes,
        "attention": 12.0 * width * scores * config.num_hidden_layers,
        "logits": 4.0 * config.vocab_size * config.hidden_size * len(micro.batch.label_index),
        "head": 6.0 * head * 3 * len(triplets),
    }


def gemm_rate(product: Callable[[Tensor, Tensor], Tensor], size: int = 2048) -> float:
    """(f) FLOPs a second of a float32 matrix product on this machine with these threads."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    product(a, b)
    begin, repeats = time.perf_counter(), 6
    for _ in range(repeats):
        product(a, b)
    return 2.0 * size**3 * repeats / (time.perf_counter() - begin)


def sample(file: str | None, count: int) -> tuple[list[TripletTokens], str]:
    """Evenly spaced triplets of a file, of the reports' data, or of generated data."""
    source = file or (str(SHARED) if SHARED.is_file() else None)
    encoder = load_encoder(Config())
    with tempfile.TemporaryDirectory() as folder:
        path = source or str(Path(folder) / "generated.jsonl")
        if source is None:
            rows = generate_dataset({"train": 16 * count}, seed=0)["train"]
            write_triplets(to_table(rows), Path(path))
        data = load_dataset(
            [path], encoder, max_length=768, overlong="drop", cache=Path(folder) / "cache"
        )
        stride = max(1, len(data) // count)
        chosen = [data.tokens(i * stride) for i in range(min(count, len(data)))]
    return chosen, Path(source).name if source else "built-in data"


def models(seed: int = 0) -> tuple[CausalModel, CausalModel]:
    """Ours, and the same weights with PEFT's own forward for the rivals."""
    pair = []
    for plain in (False, True):
        base = load_base(ModelSection(), torch.device("cpu"))
        model = build_model(base, LoraSection(dropout=0.0), seed)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():  # B is zero at initialisation and would hide errors in A's gradient
            for name, parameter in model.trainable_parameters().items():
                if "lora_B" in name:
                    parameter.normal_(0, 0.01, generator=generator)
        if plain:
            for module in model.modules():
                module.__dict__.pop("forward", None)
            base.set_attn_implementation("sdpa")
        model.train()
        pair.append(model)
    return pair[0], pair[1]


def measure(model: CausalModel, step: Callable[[], float]) -> tuple[float, float]:
    """Seconds and loss of one forward and backward."""
    model.zero_grad(set_to_none=True)
    begin = time.perf_counter()
    loss = step()
    return time.perf_counter() - begin, loss


def gradient(model: CausalModel) -> Tensor:
    """All trainable gradients as one vector."""
    return torch.cat(
        [
            (torch.zeros_like(p) if p.grad is None else p.grad).double().flatten()
            for p in model.trainable_parameters().values()
        ]
    )


def peak_bytes(model: CausalModel, step: Callable[[], float]) -> int:
    """Most bytes of tensors live at once during a step, beyond weights: activations, gradients."""
    model.zero_grad(set_to_none=True)
    with StorageTracker("cpu") as tracker:
        for parameter in [*model.parameters(), *model.buffers()]:
            tracker.assign(parameter.detach(), "base_weights")
        start = tracker.total
        step()
    return tracker.peak - start


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All measurements as one JSON-able tree."""
    triplets, source = sample(options.file, options.triplets)
    ours, plain = models()
    few = triplets[: options.reports_triplets]
    steps: dict[str, tuple[CausalModel, Step, Sequence[TripletTokens]]] = {
        "a": (plain, reports_step(), few),
        "b": (plain, padded_step(), triplets),
        "c": (plain, separate_forwards_step(), triplets),
        "d": (plain, unpadded_step(), triplets),
        "e": (ours, tree_step(options.micro_batch_tokens), triplets),
    }

    def call(name: str) -> Callable[[], float]:
        model, step, chosen = steps[name]
        return lambda: step(model, chosen, LOSS)

    rows: dict[str, Row] = {}
    gradients: dict[str, Tensor] = {}
    losses: dict[str, float] = {}
    library = fastest_library()
    matmul.use(library)  # ours alone: the rivals' forwards are their libraries' own
    gemm: dict[str, list[float]] = {"torch.mm": []}
    if library != "torch":
        gemm[library] = []
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("measuring", total=(options.repeats + 1) * len(steps))
        for name, (model, _, chosen) in steps.items():  # warms up, too
            rows[name] = Row(name, len(chosen), [], peak_bytes(model, call(name)))
            _, losses[name] = measure(model, call(name)) if name != "a" else (0.0, 0.0)
            gradients[name] = gradient(model) if name != "a" else torch.zeros(1)
            progress.advance(task)
        for _ in range(options.repeats):
            gemm["torch.mm"].append(gemm_rate(torch.mm))
            if library != "torch":
                gemm[library].append(gemm_rate(matmul.linear))
            for name, (model, _, _) in steps.items():
                rows[name].seconds.append(measure(model, call(name))[0])
                progress.advance(task)
    flops = useful_flops(ours, triplets)
    (all_nodes,) = cut_micro_batches(triplets, needs_of(LOSS), 10**9, FLAT)
    expected = gradients["d"]
    return {
        "data": source,
        "triplets": len(triplets),
        "separate_tokens": all_nodes.batch.path_tokens,
        "tree_nodes": all_nodes.batch.nodes,
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "micro_batch_tokens": options.micro_batch_tokens,
        "gemm_flops": gemm,
        "useful_flops": flops,
        "rows": {
            name: {**asdict(row), "triplets_per_second": row.rate} for name, row in rows.items()
        },
        "ratios": {n: _ratios(rows, n) for n in "abcd"},
        "utilisation": {
            name: [
                sum(flops.values()) / seconds / rate
                for seconds, rate in zip(rows["e"].seconds, rates, strict=True)
            ]
            for name, rates in gemm.items()
        },
        "profile": profile_of(call("e")),
        "relative_error": {
            name: {
                "loss": abs(losses[name] - losses["d"]) / abs(losses["d"]),
                "gradient": float((gradients[name] - expected).norm() / expected.norm()),
            }
            for name in "bce"
        },
    }


KINDS = {  # of operations, by how their names begin
    "matrix products": ("mkldnn::_linear_pointwise", "aten::mm"),
    "LoRA's accumulation": ("aten::addmm",),
    "attention kernels": ("aten::_scaled_dot_product_flash_attention",),
    "gates": ("aten::silu",),
    "softmax of the labels": ("aten::_log_softmax", "aten::exp_"),
}


def profile_of(step: Callable[[], float]) -> dict[str, float]:
    """Share of a step's time by kind of operation; by name where it is no product or kernel."""
    step()
    with profile(activities=[ProfilerActivity.CPU]) as recording:
        step()
    shares: dict[str, float] = {}
    for event in recording.key_averages():
        name = event.key
        kind = next((kind for kind, begins in KINDS.items() if name.startswith(begins)), name)
        shares[kind] = shares.get(kind, 0.0) + event.self_cpu_time_total
    total = sum(shares.values())
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    return {kind: time_spent / total for kind, time_spent in ordered}


def _ratios(rows: dict[str, Row], name: str) -> list[float]:
    """Speed of ours over a rival's in each repeat."""
    ours, other = rows["e"], rows[name]
    return [
        (b / other.triplets) / (e / ours.triplets)
        for b, e in zip(other.seconds, ours.seconds, strict=True)
    ]


def _spread(values: Sequence[float], digits: int = 2) -> str:
    return (
        f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} - "
        f"{max(values):.{digits}f})"
    )


def show(console: Console, result: dict[str, Any]) -> None:
    """The tables for people."""
    console.print(
        f"{result['triplets']} triplets of {result['data']}: {result['separate_tokens']} tokens in "
        f"separate sequences, {result['tree_nodes']} tree nodes "
        f"({result['separate_tokens'] / result['tree_nodes']:.2f}x shared). "
        f"{result['threads']} threads, torch {result['torch']}, float32, loss `reports`."
    )
    table = Table()
    for column in ("", "triplets/s", "tokens/s", "(e) is faster by", "peak MB"):
        table.add_column(column, justify="left" if not column else "right")
    for name, row in result["rows"].items():
        rates = [row["triplets"] / s for s in row["seconds"]]
        tokens = statistics.median(rates) * result["tree_nodes"] / result["triplets"]
        table.add_row(
            f"({name}) {NAMES[name]}",
            _spread(rates),
            f"{tokens:.0f}",
            _spread(result["ratios"][name]) if name in result["ratios"] else "",
            f"{row['peak_bytes'] / 1e6:,.0f}",
        )
    console.print(table)
    console.print(
        "tokens/s: distinct tokens of the triplets, the same for all. peak: tensors beyond the "
        "weights (allocated)."
    )
    flops = result["useful_flops"]
    parts = ", ".join(f"{n} {v / sum(flops.values()):.0%}" for n, v in flops.items())
    console.print(f"useful FLOPs of (e): {sum(flops.values()) / 1e12:.2f} T ({parts})")
    for name, rates in result["gemm_flops"].items():
        share = _spread([100 * u for u in result["utilisation"][name]], 1)
        console.print(
            f"(f) matrix product 2048^3 by {name}: {_spread([r / 1e9 for r in rates], 0)} GFLOP/s; "
            f"(e) reaches {share} % of it"
        )
    shares = [f"{kind} {share:.1%}" for kind, share in result["profile"].items() if share >= 0.01]
    console.print("profile of (e), what takes 1 % or more: " + ", ".join(shares))
    for name, error in result["relative_error"].items():
        console.print(
            f"({name}) against (d): loss {error['loss']:.1e}, gradient {error['gradient']:.1e}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", nargs="?", help="triplets; the reports' or generated by default")
    parser.add_argument("--triplets", type=int, default=16)
    parser.add_argument("--reports-triplets", type=int, default=2, help="of them for (a)")
    parser.add_argument("--repeats", type=int, default=5)
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
