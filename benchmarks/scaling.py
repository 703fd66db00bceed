"""What travels in a run, and what efficiency to expect of many GPUs: a calculation, not a run.

    python -m benchmarks.scaling [--gpus 8 64 512] [--gigabits 100 400 3200] [--tflops 989] ...

Measured or counted here: parameters and state sizes (the real model structures, without weights),
tokens per triplet and the balance of the workers' shares (the program's own prefix trees and
`share`). Assumed, and options of this command: the rate of a GPU, network speeds, failure rates.
docs/scaling.md explains the formulas and what they leave out.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from causal_core.config import LoraSection, LossSection
from causal_core.config_file import parse_config
from causal_core.data.writer import to_table, write_triplets
from causal_core.generator.generate import generate_dataset
from causal_core.loss.objective import needs_of
from causal_core.model.causal_model import build_model, count_parameters
from causal_core.tokens.batches import share
from causal_core.tokens.dataset import load_dataset
from causal_core.tokens.run_data import load_encoder
from causal_core.trees.packing import tree_nodes
from ray_jobs.console.quiet import quiet_libraries

# The published configurations of the models; vocabulary 128,256, head width 128 throughout.
MODELS = {
    "3B": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
           "num_attention_heads": 24, "num_key_value_heads": 8, "tie_word_embeddings": True},
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
           "num_attention_heads": 32, "num_key_value_heads": 8},
    "70B": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
            "num_attention_heads": 64, "num_key_value_heads": 8},
}  # fmt: skip
GPUS_PER_NODE = 8
NVLINK_BYTES_PER_SECOND = 300e9  # of an all-reduce inside a node
HOP_SECONDS = 20e-6  # of one message between nodes
# Bytes per parameter; NF4: half a byte, a scale of 1 byte per 64, and 4 bytes per 256 scales.
FLOAT32, BFLOAT16, NF4 = 4, 2, 0.5 + 1 / 64 + 4 / (64 * 256)
DEFAULT_LORA = LoraSection()


@dataclass(frozen=True)
class State:
    """Parameters of a model as this program trains it, and the bytes that follow from them."""

    name: str
    base: int
    matrices: int  # parameters that every token is multiplied with (no embedding, no LM head)
    adapter: int
    projection: int

    @property
    def trained(self) -> int:
        return self.adapter + self.projection

    @property
    def gradient_bytes(self) -> int:
        """What one all-reduce sums: adapter and head, float32."""
        return FLOAT32 * self.trained

    def checkpoint_bytes(self, bytes_per_moment: int = FLOAT32) -> int:
        """Adapter, head and AdamW's two moments (float32; 1 byte each for 8-bit AdamW)."""
        return (FLOAT32 + 2 * bytes_per_moment) * self.trained

    def step_flops(self, tokens: int) -> float:
        """Of `tokens` tree nodes with gradient checkpointing.

        2 per parameter and token forward, again when recomputed, and backward 2 for frozen
        matrices (towards their input only) or 4 for the adapter's (Kaplan et al., 2020, app. B,
        less the weight gradients that a frozen base has none of).
        """
        return tokens * (6.0 * self.matrices + 8.0 * self.adapter)


def state_of(name: str, lora: LoraSection = DEFAULT_LORA) -> State:
    """Counts on the real module structure, without weights."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(
            LlamaConfig(vocab_size=128_256, head_dim=128, **MODELS[name])
        )
        base.requires_grad_(False)
        embeddings = {id(m.weight): m.weight.numel() for m in
                      (base.get_input_embeddings(), base.get_output_embeddings())}  # fmt: skip
        outside = sum(embeddings.values())
        counts = count_parameters(build_model(base, lora, seed=0))
    return State(
        name, counts["base"], counts["base"] - outside, counts["adapter"], counts["projection"]
    )


def all_reduce_seconds(size: float, gpus: int, gigabits: float) -> float:
    """Ring all-reduce of `size` bytes (Patarasuk and Yuan, 2009): 2 (n-1)/n of it per link.

    Inside a node over NVLink, then between nodes, each with `gigabits` in all.
    """
    inside = min(gpus, GPUS_PER_NODE)
    seconds = 2 * (inside - 1) / inside * size / NVLINK_BYTES_PER_SECOND
    nodes = math.ceil(gpus / GPUS_PER_NODE)
    if nodes > 1:
        seconds += 2 * (nodes - 1) / nodes * size / (gigabits * 1e9 / 8)
        seconds += 2 * math.ceil(math.log2(nodes)) * HOP_SECONDS
    return seconds


def balance(costs: np.ndarray, gpus: int, per_gpu: int, repeats: int = 20) -> float:
    """Mean over largest share of work, over random global batches cut by the program's `share`."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(repeats):
        batch = rng.choice(costs, size=gpus * per_gpu).tolist()
        loads = [sum(batch[i] for i in part) for part in share(batch, gpus)]
        found.append(float(np.mean(loads)) / max(loads))
    return float(np.mean(found))


def efficiency(
    state: State, gpus: int, per_gpu: int, costs: np.ndarray, gigabits: float, flops: float
) -> float:
    """Useful share of GPU time in a step; the all-reduce overlaps with nothing (the worst case)."""
    compute = state.step_flops(round(per_gpu * float(costs.mean()))) / flops
    slowest = compute / balance(costs, gpus, per_gpu)
    return compute / (slowest + all_reduce_seconds(state.gradient_bytes, gpus, gigabits))


def measure_data(model: str, triplets: int) -> tuple[np.ndarray, float, float]:
    """On generated triplets: tree nodes of each under the default loss, bytes a tokenised row, and
    rows tokenised a second by one process."""
    config = parse_config({"model": {"name_or_path": model}})
    encoder = load_encoder(config)
    with tempfile.TemporaryDirectory() as folder:
        path, cache = Path(folder) / "train.jsonl", Path(folder) / "cache"
        data = generate_dataset({"train": triplets}, seed=0)
        write_triplets(to_table(data["train"]), path)
        begin = time.perf_counter()
        dataset = load_dataset([str(path)], encoder, max_length=1024, overlong="error", cache=cache)
        rate = triplets / (time.perf_counter() - begin)
        size = sum(file.stat().st_size for file in cache.rglob("*.arrow"))
        needs = needs_of(LossSection())
        nodes = [tree_nodes(dataset.tokens(i), needs) for i in range(len(dataset))]
    return np.array(nodes), size / len(nodes), rate


def table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Markdown, so that it can stand in docs/scaling.md as it is."""
    print("| " + " | ".join(headings) + " |")
    print("|" + "---|" * len(headings))
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")
    print()


def gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size < 1e11 else f"{size / 1e9:.0f} GB"


def show_state(states: Sequence[State]) -> None:
    print("What travels and what is stored (LoRA r 16 on seven projections, head in float32):\n")
    table(
        ["model", "base parameters", "adapter", "head", "all-reduce a step (gradients)",
         "checkpoint, AdamW", "checkpoint, 8-bit AdamW", "base read per node at the start, bf16"],
        [(s.name, f"{s.base:,}", f"{s.adapter:,}", f"{s.projection:,}", gb(s.gradient_bytes),
          gb(s.checkpoint_bytes()), gb(s.checkpoint_bytes(1)), gb(BFLOAT16 * s.base))
         for s in states],
    )  # fmt: skip


def show_zero(states: Sequence[State], flops: float, tokens: int, gigabits: float) -> None:
    print("What ZeRO could share per GPU, and what ZeRO-3 would move per micro-batch of "
          f"{tokens:,} tokens (64 GPUs, {gigabits:g} Gbit/s a node):\n")  # fmt: skip
    rows = []
    for s in states:
        # Forward, recomputation and backward each gather the base once.
        gathered = 3 * BFLOAT16 * s.base
        seconds = gathered / (gigabits * 1e9 / 8)
        packed = NF4 * s.matrices + BFLOAT16 * (s.base - s.matrices)
        rows.append((
            s.name, gb(2 * FLOAT32 * s.trained), gb(3 * FLOAT32 * s.trained),
            gb(BFLOAT16 * s.base), gb(packed), gb(gathered),
            f"{seconds:.1f} s", f"{s.step_flops(tokens) / flops:.1f} s",
        ))  # fmt: skip
    table(
        ["model", "stage 1: moments", "stage 2: and gradients", "stage 3: base in bf16",
         "base in NF4 instead", "gathered a node", "gathering", "computing"], rows,
    )  # fmt: skip


def show_failures(gpus: Sequence[int], gpu_hours: float, save: float, restart: float) -> None:
    print(f"Lost to failures (one per {gpu_hours:,.0f} GPU hours, {restart:.0f} s to be training "
          f"again, {save:.0f} s to save):\n")  # fmt: skip
    rows = []
    for n in gpus:
        between = gpu_hours / n * 3600
        best = math.sqrt(2 * save * between)  # Young, 1974
        lost = (best / 2 + restart) / between + save / best
        rows.append((n, f"{between / 3600:,.0f} h", f"{best / 60:.0f} min", f"{100 * lost:.2f} %"))
    table(["GPUs", "between failures", "best checkpoint interval", "time lost"], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--gpus", nargs="+", type=int, default=[8, 64, 512])
    parser.add_argument("--gigabits", nargs="+", type=float, default=[100.0, 400.0, 3200.0],
                        help="of a node of eight GPUs")  # fmt: skip
    parser.add_argument("--tflops", type=float, default=989.0, help="peak of a GPU, dense bf16")
    parser.add_argument("--utilisation", type=float, default=0.35, help="of that peak")
    parser.add_argument("--per-gpu", type=int, default=16, help="triplets a GPU and step")
    parser.add_argument("--fixed-batch", type=int, default=512, help="triplets a step in all")
    parser.add_argument("--tokenizer", default="demo", help="model whose tokenizer is used")
    parser.add_argument("--lengthen", type=float, default=1.0, help="multiplies all token counts")
    parser.add_argument("--gpu-hours-per-failure", type=float, default=50_000.0)
    options = parser.parse_args(arguments)
    quiet_libraries()
    flops = options.tflops * 1e12 * options.utilisation
    states = [state_of(name) for name in options.models]
    show_state(states)

    nodes, row_bytes, rate = measure_data(options.tokenizer, 2000)
    costs = nodes * options.lengthen
    print(
        f"Measured on {len(nodes):,} generated triplets: {nodes.mean():.0f} tree nodes each "
        f"({nodes.min()} to {nodes.max()}), {row_bytes:.0f} bytes a tokenised row, "
        f"{rate:,.0f} rows tokenised a second by one process.\n"
    )
    for title, per_gpu_of in (
        (f"{options.per_gpu} triplets a GPU (the global batch grows)", lambda n: options.per_gpu),
        (f"a global batch of {options.fixed_batch}", lambda n: max(1, options.fixed_batch // n)),
    ):
        print(f"Efficiency with {title}; GPUs at {flops / 1e12:.0f} TFLOP/s:\n")
        rows = []
        for state in states:
            for speed in options.gigabits:
                cells = [
                    f"{100 * efficiency(state, n, per_gpu_of(n), costs, speed, flops):.0f} %"
                    for n in options.gpus
                ]
                rows.append((state.name, f"{speed:g}", *cells))
        table(["model", "Gbit/s a node", *(f"{n} GPUs" for n in options.gpus)], rows)
        balances = [f"{100 * balance(costs, n, per_gpu_of(n)):.0f} %" for n in options.gpus]
        print("Of which the balance of the shares alone (on any network): "
              + ", ".join(balances) + ".\n")  # fmt: skip

    show_zero(states, flops, 8192, 400.0)
    show_failures(options.gpus, options.gpu_hours_per_failure, save=10.0, restart=120.0)


if __name__ == "__main__":
    main()
