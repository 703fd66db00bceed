"""The memory plan against torch's own memory events of real optimizer steps on CPU.

    python -m benchmarks.memory_step [--ranks 8 64] [--tokens 256 1024] [--json FILE]

For every rank, token budget, checkpointing on and off, and base none and nf4: SmolLM2-135M-Instruct
(the demo model) takes optimizer steps of two micro-batches in a process of its own: one to warm up,
one while the resident set is watched, one while torch's profiler records every allocation and free
of CPU tensors (*allocated* bytes). Beside it stands what `causal_core.memory` predicts for the same
micro-batch, from the architecture alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from causal_core.config import Config
from causal_core.config_file import parse_config
from causal_core.engines.plain import PlainEngine
from causal_core.loss.objective import Denominators
from causal_core.memory import BatchShape, predict
from causal_core.model import matmul
from causal_core.model.causal_model import build_model
from causal_core.model.matmul import fastest_library
from causal_core.pretrained.loading import load_base
from causal_core.step.train_step import TrainStep
from causal_core.tokens.triplet import InjectionTokens, TripletTokens

MIB = 2**20
# One arena, and freed tensors go back to the system at once: the resident set then is what lives,
# not what the C library keeps in reserve.
ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536",
    "OMP_NUM_THREADS": "1",
}  # fmt: skip


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--bases", nargs="+", default=["none", "nf4"], choices=["none", "nf4"])
    parser.add_argument("--json", type=Path, help="Also write the rows to this file.")
    parser.add_argument("--one", help="(internal) one configuration, as JSON")
    return parser.parse_args()


def config_of(case: dict[str, Any]) -> Config:
    return parse_config(
        {
            "model": {"name_or_path": "demo", "quantization": case["quantization"]},
            "lora": {"rank": case["rank"], "alpha": 2 * case["rank"]},
            "train": {
                "micro_batch_tokens": case["tokens"],
                "gradient_checkpointing": case["checkpointing"],
            },
            "resources": {"workers": 0},
        }
    )


def triplet_of(tokens: int) -> TripletTokens:
    """A triplet whose tree has `tokens` nodes: shared S, two branches, answers of an eighth."""
    answer = max(1, tokens // 16)
    shared = (tokens - 2 * (answer - 1)) // 3
    left = tokens - 2 * (answer - 1) - shared
    first, second = left // 2, left - left // 2

    def ids(offset: int, count: int) -> list[int]:
        return [100 + (offset + i) % 40000 for i in range(count)]

    injection = InjectionTokens(ids(9001, second), ids(3, answer), [], [])
    return TripletTokens(
        "t", ids(0, shared), ids(1, first), ids(2, 4), ids(3, answer), (injection,)
    )


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """A step to warm up, one watched from outside, one profiled, in this process."""
    torch.set_num_threads(1)
    matmul.use(fastest_library())
    config, device = config_of(case), torch.device("cpu")
    base = load_base(config.model, device)
    model = build_model(base, config.lora, 0, config.train.gradient_checkpointing)
    engine = PlainEngine(model, config.train, device)
    shapes: list[BatchShape] = []
    step = _OneByOne(engine, config.loss, config.train, device,
                     on_micro_batch=lambda batch: shapes.append(BatchShape.of(batch)))  # fmt: skip
    batch = [triplet_of(case["tokens"])] * 2

    def run() -> None:
        step.run(batch, Denominators.of(batch), 1e-4, batch[0])

    run()  # makes the optimizer's state, and whatever libraries keep from a first call
    rss = _resident_increment(run)
    held = _bytes_of(model, engine.optimizer)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recording:
        run()
    begin = time.perf_counter()
    plan = predict(config, shape=shapes[0], device="cpu")
    static = sum(v for k, v in plan.phases["resume"].components.items() if k != "workspace")
    return {
        **case,
        "measured_bytes": _peak(recording, held),
        "predicted_bytes": plan.step_bytes,
        "measured_rss_increment": rss,
        "predicted_increment": plan.step_bytes - static,
        "predict_seconds": time.perf_counter() - begin,
    }


class _OneByOne(TrainStep):
    """A micro-batch for each triplet, so that a step has as many as it has triplets."""

    def cut(self, triplets: Any) -> Any:
        return [micro for one in triplets for micro in super(_OneByOne, self).cut([one])]


def _bytes_of(model: Any, optimizer: Any) -> int:
    """What is there when a step begins."""
    seen: dict[int, int] = {}

    def add(tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()

    for parameter in model.parameters():
        add(parameter.data)
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            nested = [state.state2.absmax, state.state2.code] if state.nested else []
            for tensor in (state.absmax, state.code, state.offset, *nested):
                if isinstance(tensor, torch.Tensor):
                    add(tensor)
    for buffer in model.buffers():
        add(buffer)
    for values in optimizer.state.values():
        for value in values.values():
            if isinstance(value, torch.Tensor):
                add(value)
    return sum(seen.values())


def _peak(recording: Any, held: int) -> int:
    """Highest running total of torch's memory events, from what was held before."""
    events = [e for e in recording.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda e: e.start_ns())
    total = peak = held
    for event in events:
        total += event.nbytes()
        peak = max(peak, total)
    return peak


def _resident_increment(run: Any) -> int:
    """How far the resident set rises above what it was before, sampled every millisecond."""
    import ctypes
    import gc

    page = os.sysconf("SC_PAGE_SIZE")

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * page

    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before, highest, done = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.is_set():
            highest = max(highest, resident())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    run()
    done.set()
    watcher.join()
    return highest - before


def main() -> None:
    options = parse()
    if options.one:
        print("ROW " + json.dumps(measure(json.loads(options.one))))
        return
    rows = []
    head = f"{'base':6} {'rank':>4} {'tokens':>6} {'checkpointing':13}"
    print(f"{head} {'measured MiB':>12} {'predicted MiB':>13} {'error':>8}   "
          f"{'RSS increment MiB':>17} {'predicted':>9} {'off MiB':>8}")  # fmt: skip
    for quantization, rank, tokens, checkpointing in itertools.product(
        options.bases, options.ranks, options.tokens, (False, True)
    ):
        case = {"quantization": quantization, "rank": rank, "tokens": tokens,
                "checkpointing": checkpointing}  # fmt: skip
        outcome = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "benchmarks.memory_step", "--one",
             json.dumps(case)],
            capture_output=True, text=True, check=False,
            env={**os.environ, **ALLOCATOR},
        )  # fmt: skip
        line = next((x for x in outcome.stdout.splitlines() if x.startswith("ROW ")), None)
        if line is None:
            print(
                f"{quantization} {rank} {tokens} {checkpointing}: failed\n{outcome.stderr[-2000:]}"
            )
            continue
        row = json.loads(line.removeprefix("ROW "))
        row["error"] = row["predicted_bytes"] / row["measured_bytes"] - 1
        rows.append(row)
        off = row["predicted_increment"] - row["measured_rss_increment"]
        print(
            f"{quantization:6} {rank:4} {tokens:6} {checkpointing!s:13} "
            f"{row['measured_bytes'] / MIB:12.1f} {row['predicted_bytes'] / MIB:13.1f} "
            f"{row['error']:+8.2%}   {row['measured_rss_increment'] / MIB:17.1f} "
            f"{row['predicted_increment'] / MIB:9.1f} {off / MIB:+8.1f}",
            flush=True,
        )
    errors = [abs(row["error"]) for row in rows]
    offs = [abs(r["predicted_increment"] - r["measured_rss_increment"]) for r in rows]
    relative = [o / r["measured_rss_increment"] for o, r in zip(offs, rows, strict=True)]
    within = sum(o <= 25 * MIB or q <= 0.05 for o, q in zip(offs, relative, strict=True))
    print(
        f"{len(rows)} configurations, allocated peak: median {statistics.median(errors):.2%}, "
        f"worst {max(errors):.2%} (goal: 1 %). RSS increment: worst {max(offs) / MIB:.1f} MiB, "
        f"{within} of {len(rows)} within 5 % or 25 MB (goal: all)"
    )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
