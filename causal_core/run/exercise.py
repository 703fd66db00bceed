"""A tiny training job under any engine, in processes of its own.

`causal doctor` runs it to see what works on a machine, the benchmarks and tests to see that all
engines compute the same. The base is a random Llama of two layers: nothing is downloaded.

A job file describes several exercises; every worker is one process, `python -m
causal_core.run.exercise JOB RANK`, and runs them one after the other.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from causal_core.config import Config
from causal_core.config_file import parse_config
from causal_core.files import write_whole

VOCABULARY = 128
HIDDEN = 64
GLOBAL_BATCH = 6
TRIPLETS = 4 * GLOBAL_BATCH
CLIP_NORM = 0.5
_ALONE = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}


@dataclass(frozen=True)
class Exercise:
    """Optimizer steps `first` to `last` of the tiny job."""

    name: str
    config: Config
    last: int = 6
    first: int = 0
    resume: str | None = None  # checkpoint directory to begin from
    save: str | None = None  # checkpoint directory to write
    saved_at: int | None = None  # after which step; None: the last
    # In float64, for comparisons that no rounding of a processor disturbs; ZeRO still adds up
    # gradients and moves weights in float32.
    double: bool = False
    attacks: int = 1  # of each triplet


@dataclass(frozen=True)
class ExerciseResult:
    """What an exercise measured on one worker, or why it failed."""

    name: str
    losses: list[float]
    grad_norms: list[float]
    applied: list[bool]  # False: a step that was skipped
    seconds: float
    error: str | None = None


def exercise_config(base: Path, /, **sections: Any) -> Config:
    """The config of an exercise: float32, no dropout, a clipping norm that every step exceeds.

    Args:
        base: From `write_base`.
        sections: Fields by section, e.g. `train={"micro_batch_tokens": 100}`, and `engine`.
    """
    tree: dict[str, Any] = {
        "model": {"name_or_path": str(base)},
        "lora": {"rank": 4, "alpha": 8, "dropout": 0.0},
        "loss": {"lambda_causal": 0.5, "lambda_spurious": 0.5},
        "train": {
            "global_batch": GLOBAL_BATCH,
            "micro_batch_tokens": 200,
            "learning_rate": 1e-3,
            "schedule": "constant",
            "warmup_ratio": 0.0,
            "clip_norm": CLIP_NORM,
        },
    }
    for name, value in sections.items():
        if isinstance(value, dict):
            tree.setdefault(name, {}).update(value)
        else:
            tree[name] = value
    return parse_config(tree, "exercise")


def write_base(directory: Path, vocabulary: int = VOCABULARY, hidden: int = HIDDEN) -> Path:
    """A random Llama of two layers in Hugging Face layout (the same one every time)."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    base = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
        )
    )
    base.save_pretrained(directory)
    return directory


def run_exercises(
    exercises: Sequence[Exercise],
    directory: Path,
    workers: int = 1,
    device: str = "cpu",
    timeout: float = 300.0,
    module: str = "causal_core.run.exercise",
) -> list[ExerciseResult]:
    """Runs exercises on `workers` processes and returns worker 0's result of each.

    Where a process dies or hangs, the exercise it was in fails and the rest goes on in new ones.
    It hangs when `timeout` seconds bring no result of any exercise.
    The trained weights of an exercise are in `directory/<name>.safetensors`, the result of each
    worker in `directory/<name>.<rank>.json`.

    Args:
        module: What each worker process runs.
    """
    directory.mkdir(parents=True, exist_ok=True)
    waiting, results = list(exercises), {}
    while waiting:
        job = directory / "job.json"
        job.write_text(
            json.dumps(
                {
                    "directory": str(directory),
                    "workers": workers,
                    "device": device,
                    "exercises": [
                        {**asdict(each), "config": each.config.model_dump(mode="json")}
                        for each in waiting
                    ],
                }
            )
        )
        (directory / "rendezvous").unlink(missing_ok=True)
        why = _run_processes(job, workers, timeout, module)
        while waiting and _is_finished(directory, waiting[0].name, workers):
            exercise = waiting.pop(0)
            results[exercise.name] = worker_result(directory, exercise.name, 0)
        if waiting:
            name = waiting.pop(0).name
            why = why or "the process ended too early"
            results[name] = ExerciseResult(name, [], [], [], 0.0, why)
    return [results[exercise.name] for exercise in exercises]


def worker_result(directory: Path, name: str, rank: int) -> ExerciseResult:
    """What worker `rank` measured in an exercise that came to its end."""
    return ExerciseResult(**json.loads(_path(directory, name, rank).read_text()))


def _run_processes(job: Path, workers: int, timeout: float, module: str) -> str | None:
    """Runs the workers of a job to their end; what went wrong, or None."""
    environment = {k: v for k, v in os.environ.items() if k not in _ALONE}
    with (job.parent / "output.txt").open("w+") as output:
        running = [
            subprocess.Popen(  # noqa: S603 - this interpreter and this module
                [sys.executable, "-m", module, str(job), str(rank)],
                stdout=output,
                stderr=output,
                env=environment,
            )
            for rank in range(workers)
        ]
        answers, deadline = _answers(job.parent), time.monotonic() + timeout
        why = None
        try:
            while why is None and any(process.poll() is None for process in running):
                time.sleep(0.02)
                codes = [process.poll() for process in running]
                if failed := [code for code in codes if code not in (None, 0)]:
                    why = f"a worker ended with exit code {failed[0]}"
                elif (found := _answers(job.parent)) != answers:
                    answers, deadline = found, time.monotonic() + timeout
                elif time.monotonic() > deadline:
                    why = f"no answer for {timeout:.0f} s"
        finally:  # none outlives the job: not after a failure, not after Ctrl-C
            for process in running:
                if process.poll() is None:
                    process.kill()
                process.wait()
        output.seek(0)
        lines = [line for line in output.read().splitlines() if line.strip()]
    return why and f"{why}: {lines[-1].strip() if lines else 'it said nothing'}"


def _answers(directory: Path) -> int:
    """How many results of workers there are."""
    return sum(1 for _ in directory.glob("*.json"))


def _is_finished(directory: Path, name: str, workers: int) -> bool:
    return all(_path(directory, name, rank).exists() for rank in range(workers))


def _path(directory: Path, name: str, rank: int) -> Path:
    return directory / f"{name}.{rank}.json"


def run_worker(job: dict[str, Any], rank: int) -> None:
    """One worker of a job: all its exercises, one after the other."""
    import torch
    import torch.distributed as dist

    from causal_core.device import distributed_backend, prepare_device

    os.environ["DS_ACCELERATOR"] = job["device"]
    directory, workers = Path(job["directory"]), job["workers"]
    device = torch.device(job["device"], rank) if job["device"] == "cuda" else torch.device("cpu")
    exercises = [
        Exercise(**{**described, "config": parse_config(described["config"])})
        for described in job["exercises"]
    ]
    deterministic = any(exercise.config.train.deterministic for exercise in exercises)
    prepare_device(device, threads=1, deterministic=deterministic)
    if workers > 1:
        store = dist.FileStore(str(directory / "rendezvous"), workers)
        backend = distributed_backend(device.type == "cuda")
        dist.init_process_group(backend, store=store, rank=rank, world_size=workers)
    for exercise in exercises:
        result = run_exercise(exercise, directory, device, rank, workers)
        path = _path(directory, exercise.name, rank)
        write_whole(path, json.dumps(asdict(result)))
    if dist.is_initialized():
        dist.destroy_process_group()


def run_exercise(
    exercise: Exercise, directory: Path, device: Any, rank: int, workers: int
) -> ExerciseResult:
    """One exercise in this process, as worker `rank` of the process group (if there is one)."""
    from safetensors.torch import save_file

    from causal_core.checkpoints.checkpoint import load_checkpoint, save_checkpoint
    from causal_core.engines.build import build_engine
    from causal_core.loss.objective import Denominators
    from causal_core.model.causal_model import build_model
    from causal_core.pretrained.loading import load_base, loading_device
    from causal_core.step.train_step import TrainStep
    from causal_core.tokens.batches import share

    config = exercise.config
    base = load_base(config.model, loading_device(config, device))
    model = build_model(base, config.lora, config.run.seed, config.train.gradient_checkpointing)
    if exercise.double:
        model.double()
    engine = build_engine(config, model, device)
    step = TrainStep(engine, config.loss, config.train, device)
    if exercise.resume is not None:
        load_checkpoint(Path(exercise.resume), engine, config, "exercise", "exercise")
    triplets = _triplets(exercise.attacks)
    reports, seconds = [], 0.0
    saved_at = exercise.last if exercise.saved_at is None else exercise.saved_at
    for number in range(exercise.first, exercise.last):
        begin = time.perf_counter()
        start = number * GLOBAL_BATCH % len(triplets)
        batch = triplets[start : start + GLOBAL_BATCH]
        positions = share([t.size_bound() for t in batch], workers)[rank]
        report = step.run(
            [batch[i] for i in positions],
            Denominators.of(batch),
            config.train.learning_rate,
            stand_in=batch[0],
        )
        reports.append(report)
        seconds += time.perf_counter() - begin
        if exercise.save is not None and number + 1 == saved_at:
            state, where = engine.state(), trainer_state(config, saved_at)
            if rank == 0:
                place = Path(exercise.save)
                save_checkpoint(place, engine, state, config, _NoTokenizer(), where, {})
    state = engine.state()
    if rank == 0:
        save_file(state.weights, directory / f"{exercise.name}.safetensors")
    return ExerciseResult(
        name=exercise.name,
        losses=[r.loss for r in reports],
        grad_norms=[r.grad_norm for r in reports],
        applied=[r.applied for r in reports],
        seconds=seconds,
    )


def trainer_state(config: Config, step: int) -> Any:
    """What a checkpoint of an exercise says about itself, besides the weights."""
    from causal_core.checkpoints.state import TrainerState

    return TrainerState(
        step=step,
        samples=step * GLOBAL_BATCH,
        seed=config.run.seed,
        learning_rate=config.train.learning_rate,
        total_steps=step,
        skipped=0,
        skipped_in_a_row=0,
        best={},
        data_fingerprint="exercise",
        base_fingerprint="exercise",
        config_fingerprint=config.fingerprint(),
    )


class _NoTokenizer:
    """Exercises train on token numbers; their checkpoints hold no tokenizer."""

    def save_pretrained(self, directory: str) -> None:
        pass


def _triplets(attacks: int) -> list[Any]:
    """Random triplets that share two system prompts; U lies within U* in part of them. Where they
    have several attacks, it is known what those want."""
    from causal_core.tokens.triplet import InjectionTokens, TripletTokens

    rng = random.Random(0)

    def ids(low: int, high: int) -> list[int]:
        return [rng.randrange(3, VOCABULARY) for _ in range(rng.randint(low, high))]

    systems = [ids(4, 9), ids(4, 9)]
    triplets = []
    for number in range(TRIPLETS):
        benign, answer = ids(3, 12), ids(1, 5)
        triplets.append(
            TripletTokens(
                id=str(number),
                system=rng.choice(systems),
                benign=benign,
                counterfactual=ids(3, 12),
                benign_answer=answer,
                injections=tuple(
                    InjectionTokens(
                        prompt=rng.choice([benign, []]) + ids(3, 8),
                        answer=rng.choice([answer, ids(1, 5)]),
                        witness=[],
                        attack_answer=ids(1, 5) if attacks > 1 else [],
                    )
                    for _ in range(attacks)
                ),
            )
        )
    return triplets


if __name__ == "__main__":
    run_worker(json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2]))
