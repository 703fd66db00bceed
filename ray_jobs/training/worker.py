"""What runs on each Ray worker: one training loop, or one shard of an evaluation.

These functions live in the installed package and take plain values, so that Ray ships their names
and not their code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from causal_core.config_file import parse_config
from causal_core.config_sections import FLOAT32
from causal_core.errors import OneWorkerFailedError, RunFailedError, UserError
from ray_jobs.console.quiet import quiet_libraries
from ray_jobs.training.process import STOP_FILE
from ray_jobs.training.worker_log import keep_log

if TYPE_CHECKING:
    from causal_core.run.context import RunContext


def train_worker(job: Mapping[str, Any]) -> dict[str, Any]:
    """The `train_loop_per_worker` of the TorchTrainer.

    Args:
        job: `config` (the resolved tree), `directory` (of the run), `location` (of its
            checkpoints), `threads` (CPU threads), `stop_at` (a step to stop after, or None),
            `start` (its name, see `waiting.Wait`).

    Returns:
        The run's summary, or `{"user_error": message}` or `{"run_failed": message}`: such an error
        is the same on all workers and would come again on every retry, so it must not count as a
        failure of the worker.
    """
    quiet_libraries()
    from ray_jobs.training.context import RayContext
    from ray_jobs.training.waiting import workers_are_up

    context = RayContext(Path(job["directory"]), job["location"], job["stop_at"])

    def begin() -> None:
        if context.rank == 0:
            workers_are_up(context.directory, job["start"])

    return _train(job, context, begin)


def train_alone(job: Mapping[str, Any]) -> dict[str, Any]:
    """`train_worker` without Ray, for the only worker of a run (`process.py`).

    Args:
        job: As there, without `location` and `start`.
    """
    from causal_core.device import worker_device
    from causal_core.run.context import LocalContext

    config = parse_config(job["config"])
    directory = Path(job["directory"])
    context = LocalContext(
        directory,
        worker_device(config.resources.gpus_per_worker),
        keep_last=config.checkpoint.keep_last,
        storage=config.checkpoint.storage,
        stop_at=job["stop_at"],
        stop_file=directory / STOP_FILE,
    )
    return _train(job, context, lambda: None)


def _train(
    job: Mapping[str, Any], context: RunContext, begin: Callable[[], None]
) -> dict[str, Any]:
    from causal_core.device import prepare_device
    from causal_core.run.loop import train

    form = job["config"]["logging"]["format"]
    keep_log(form, context.directory, f"worker-{context.rank}", rank=context.rank)
    config = parse_config(job["config"])
    gpus, deterministic = config.resources.gpus_per_worker, config.train.deterministic
    prepare_device(context.device, job["threads"], gpus, deterministic)
    try:
        begin()
        return train(config, context)
    except OneWorkerFailedError:  # the others wait for it: Ray restarts them all
        raise
    except UserError as error:
        return {"user_error": str(error)}
    except RunFailedError as error:
        return {"run_failed": str(error)}


def evaluation_worker(job: Mapping[str, Any]) -> dict[str, Any]:
    """`evaluate_shard` as a Ray task, a process of its own."""
    form, shard = job["config"]["logging"]["format"], job["shard"]
    keep_log(form, Path(job["directory"]), f"evaluation-{shard}", rank=shard)
    return evaluate_shard(job)


def evaluate_shard(job: Mapping[str, Any]) -> dict[str, Any]:
    """Evaluates this shard's rows of every test set under every model.

    Args:
        job: `config` (of the evaluation), `subjects` (see `causal_core.evaluation.subject`),
            `threads`, `shard` and `shards`, `progress` (a file that gets one number per
            piece of work done), `directory` (of the run).

    Returns:
        `rows`: row records by model and test set; `matmul`: in which type they were computed.
    """
    quiet_libraries()
    from causal_core.checkpoints.contents import verify_checkpoint
    from causal_core.device import prepare_device, worker_device
    from causal_core.evaluation.rows import evaluate_rows, to_records
    from causal_core.evaluation.subject import Subject, in_memory
    from causal_core.model import matmul
    from causal_core.model.lora import without_adapter
    from causal_core.tokens.run_data import load_encoder, load_test_set

    config = parse_config(job["config"])
    subjects = [Subject.from_plain(values) for values in job["subjects"]]
    for checkpoint in filter(None, (subject.checkpoint for subject in subjects)):
        verify_checkpoint(checkpoint)  # before a model is loaded for it
    device = worker_device(config.resources.gpus_per_worker)
    prepare_device(device, job["threads"], config.resources.gpus_per_worker)
    results: dict[str, dict[str, list[dict[str, Any]]]] = {}
    asked, products = config.evaluated_products(), FLOAT32
    with Path(job["progress"]).open("a", encoding="utf-8", buffering=1) as progress:
        for subject, model in in_memory(subjects, device, asked):
            products = matmul.products()  # the same for all
            encoder = load_encoder(subject.config)
            results[subject.name] = {}
            for set_name, paths in config.data.test.items():
                dataset = load_test_set(subject.config, encoder, paths)
                dataset = dataset.head(config.evaluation.limit)
                # A fresh adapter says the same as none, and costs its products.
                with without_adapter(model) if subject.is_base else nullcontext():
                    rows = evaluate_rows(
                        model,
                        encoder,
                        dataset,
                        range(job["shard"], len(dataset), job["shards"]),
                        config.evaluation,
                        device,
                        head_trained=subject.head_trained,
                        progress=lambda count: print(count, file=progress),
                    )
                results[subject.name][set_name] = to_records(rows)
            del model  # before the next one is loaded
    return {"rows": results, "matmul": products}
