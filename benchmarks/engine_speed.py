"""How much of the machine two DDP workers use: 2 workers x 1 thread against 1 worker x 2 threads.

    python -m benchmarks.engine_speed [--steps 4] [--rounds 3] [--global-batch 16]

The same global batches of generated triplets on the demo model, the same micro-batch budget. The
two arrangements take turns, so that a change of the machine's mood meets both; each round starts
its processes anew, and its first step warms up and does not count. The ratio is that of the
median seconds of an optimizer step, one worker over two: 1.0 means that DDP costs nothing.
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

from causal_core.config import Config
from causal_core.config_file import parse_config

WARM_UP = 1


def make_config(directory: Path, global_batch: int, tokens: int, seed: int = 0) -> Config:
    """The demo model on generated triplets."""
    from causal_core.data.writer import to_table, write_triplets
    from causal_core.generator.generate import generate_dataset

    triplets = generate_dataset({"train": 4 * global_batch}, seed)["train"]
    write_triplets(to_table(triplets), directory / "train.jsonl")
    return parse_config(
        {
            "run": {"dir": str(directory / "run"), "seed": seed},
            "data": {"train": [str(directory / "train.jsonl")]},
            "train": {"global_batch": global_batch, "micro_batch_tokens": tokens, "epochs": 100},
        }
    )


def measure(config: Config, directory: Path, workers: int, threads: int, steps: int) -> list[float]:
    """Seconds of each optimizer step but the first, as worker 0 saw them."""
    tree = config.model_dump(mode="json")
    tree["resources"] |= {"workers": workers, "threads": threads}
    job = directory / "job.json"
    job.write_text(json.dumps({"config": tree, "steps": steps, "directory": str(directory)}))
    (directory / "rendezvous").unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.engine_speed", "--worker", str(job), "--rank"]
    running = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, text=True)
        for rank in range(workers)
    ]
    outputs = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise SystemExit(f"a worker failed: {outputs}")
    return json.loads(outputs[0].splitlines()[-1])[WARM_UP:]


def work(job: dict[str, Any], rank: int) -> list[float]:
    """One worker: seconds of its optimizer steps."""
    import torch
    import torch.distributed as dist

    from causal_core.device import distributed_backend, prepare_device
    from causal_core.loss.objective import Denominators
    from causal_core.run.session import open_session
    from causal_core.step.train_step import TrainStep
    from causal_core.tokens.batches import share

    config, device = parse_config(job["config"]), torch.device("cpu")
    workers = config.resources.max_workers
    prepare_device(device, config.resources.threads)
    if workers > 1:
        store = dist.FileStore(str(Path(job["directory"]) / "rendezvous"), workers)
        dist.init_process_group(distributed_backend(0), store=store, rank=rank, world_size=workers)
    session = open_session(config, device)
    step = TrainStep(session.engine, config.loss, config.train, device)
    seconds = []
    for number in range(job["steps"] + WARM_UP):
        begin = time.perf_counter()
        rows = session.plan.batch(number, config.run.seed)
        batch = [session.data.train.tokens(int(i)) for i in rows]
        mine = share([t.size_bound() for t in batch], workers)[rank]
        step.run([batch[i] for i in mine], Denominators.of(batch), 1e-4, stand_in=batch[0])
        seconds.append(time.perf_counter() - begin)
    if dist.is_initialized():
        dist.destroy_process_group()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=4, help="Steps that count, a round.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--global-batch", type=int, default=16)
    parser.add_argument("--micro-batch-tokens", type=int, default=2048)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    from ray_jobs.console.quiet import quiet_libraries

    quiet_libraries()
    if chosen.worker:
        print(json.dumps(work(json.loads(chosen.worker.read_text()), chosen.rank)))
        return
    one: list[float] = []
    two: list[float] = []
    with tempfile.TemporaryDirectory(prefix="causal-speed-") as folder:
        directory = Path(folder)
        config = make_config(directory, chosen.global_batch, chosen.micro_batch_tokens)
        for _ in range(chosen.rounds):
            one += measure(config, directory, 1, 2, chosen.steps)
            two += measure(config, directory, 2, 1, chosen.steps)
    for name, seconds in (("1 worker x 2 threads", one), ("2 workers x 1 thread", two)):
        print(
            f"{name}: median {statistics.median(seconds):.3f} s a step "
            f"({min(seconds):.3f} to {max(seconds):.3f}, n = {len(seconds)})"
        )
    print(f"DDP speed ratio: {statistics.median(one) / statistics.median(two):.3f}")


if __name__ == "__main__":
    main()
