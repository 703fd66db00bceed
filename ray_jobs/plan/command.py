"""What a run is going to do: computed without weights, shown before anything starts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from causal_core.amounts import parse_bytes
from causal_core.config import Config
from causal_core.config_file import load_config
from causal_core.device import available_cores
from causal_core.errors import ConfigError, ModelError, UserError
from causal_core.model.causal_model import parameter_counts
from causal_core.run.schedule import warmup_steps
from ray_jobs.console.answer import print_json
from ray_jobs.console.plain import plain
from ray_jobs.shared_prompts import refuse_shared
from ray_jobs.training.process import runs_alone
from ray_jobs.training.ray_session import refused_here, worker_threads

if TYPE_CHECKING:
    from causal_core.memory.shapes import DataProfile
    from causal_core.tokens.run_data import RunData


def plan_command(
    path: Path,
    overrides: Iterable[str],
    gpu_memory: str | None,
    gpu: str | None,
    as_json: bool,
) -> None:
    """The `plan` command: steps and tokens where the data can be read, memory in any case.

    Raises:
        UserError: the config is not valid, the run does not fit the device, or training will
            refuse the model's tokenizer or template, what the data ask of the model, or prompts
            that two splits share.
    """
    from causal_core.amounts import gib
    from ray_jobs.plan.memory import report_memory, show_memory

    config = load_config(path, overrides)
    budget = _budget(config, gpu_memory, gpu)
    if budget is not None and config.resources.gpu_memory_bytes != budget:
        resources = config.resources.model_copy(update={"gpu_memory": str(budget)})
        config = config.model_copy(update={"resources": resources})
    data, why_not, refused = _data(config)
    profile = None
    if data is not None:
        from causal_core.loss.objective import needs_of
        from causal_core.memory.shapes import DataProfile

        profile = DataProfile.of(data.train, needs_of(config.loss))
    if config.train.micro_batch_tokens == "auto":
        config = _with_tokens(config, budget, profile)
    memory = report_memory(config, budget, profile)
    planned = (
        plan_of(config, data)
        if data is not None
        else {"data": why_not, "refused_here": refused_here(config)}
    )
    if as_json:
        print_json({**planned, "memory": memory.to_dict()})
    else:
        console = Console()
        if data is not None:
            show_plan(console, planned)
        elif refused is None:
            console.print(
                plain(f"steps and tokens are not planned: {why_not}", lines=True), soft_wrap=True
            )
        show_memory(console, config, memory)
        if (missing := refused_here(config)) is not None:
            console.print(plain(missing, lines=True), style="yellow", soft_wrap=True)
    if memory.fits is False:
        raise UserError(
            f"{path} does not fit: it needs {gib(memory.plan.required_bytes)} of "
            f"{gib(memory.budget_bytes or 0)}"
            + (f"; with {' '.join(memory.nearest)} it does" if memory.nearest else "")
        )
    if refused is not None:
        raise refused


def _with_tokens(config: Config, budget: int | None, data: DataProfile | None) -> Config:
    """`auto` as the number it comes to; the smallest of use where nothing fits, to show by how much
    it does not."""
    from causal_core.memory.fit import automatic_micro_batch, largest_micro_batch, least_tokens

    if budget is None:
        tokens = automatic_micro_batch(config, data=data)
    else:
        fitting = largest_micro_batch(config, budget, device="cuda", data=data)
        tokens = fitting or least_tokens(config, data)
    train = config.train.model_copy(update={"micro_batch_tokens": tokens})
    return config.model_copy(update={"train": train})


def _budget(config: Config, gpu_memory: str | None, gpu: str | None) -> int | None:
    """Bytes of the device to plan for: as asked, as configured, or of the GPU that is here."""
    from causal_core.amounts import card_bytes

    if gpu_memory is not None:
        try:
            return parse_bytes(gpu_memory)
        except ValueError as error:
            raise ConfigError(f"--gpu-memory {gpu_memory}: {error}") from None
    if gpu is not None:
        return card_bytes(gpu)
    if config.resources.gpu_memory_bytes is not None:
        return config.resources.gpu_memory_bytes
    if config.resources.gpus_per_worker > 0:
        import torch

        if torch.cuda.is_available():
            return int(torch.cuda.get_device_properties(0).total_memory)
    return None


def _data(config: Config) -> tuple[RunData | None, str, UserError | None]:
    """The run's data, or why there is none (a plan of the memory needs none), and the error that
    training will end with where there is one."""
    from causal_core.data.sources import matching

    files = [file.path.partition("#")[0] for file in config.data.weighted_files()]
    missing = [
        name
        for name in files
        if "://" not in name and not Path(name).exists() and not matching(Path(name))
    ]
    if not files:
        return None, "data.train is empty", _refused_template(config)
    if missing:
        return None, f"no such file: {', '.join(missing)}", _refused_template(config)
    from causal_core.tokens.run_data import load_run_data

    try:
        data = load_run_data(config)
    except ModelError as error:
        return None, str(error), error
    try:
        refuse_shared(config, data, lambda _: None)
    except UserError as error:
        return data, "", error
    return data, "", None


def _refused_template(config: Config) -> ModelError | None:
    """What training refuses of a tokenizer that is on this machine, whatever the data will be."""
    from causal_core.tokens.run_data import load_encoder

    model = Path(config.model.name_or_path)
    if not any((model / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        return None
    try:
        load_encoder(config)
    except ModelError as error:
        return error
    return None


def plan_of(config: Config, data: RunData) -> dict[str, Any]:
    """Parameters, steps and tokens of a run, from the model's own configuration and the data."""
    from causal_core.tokens.run_data import step_plan

    plan = step_plan(config, len(data.train))
    validation = data.validation
    return {
        "model": config.model.name_or_path,
        "quantization": config.model.quantization,
        "parameters": parameter_counts(config),
        "train_triplets": len(data.train),
        "validation_triplets": len(validation) if validation is not None else 0,
        "train_tokens": round(data.train.mean_tokens() * plan.samples_after(plan.total_steps)),
        "mean_triplet_tokens": round(data.train.mean_tokens(), 1),
        "global_batch": config.train.global_batch,
        "micro_batch_tokens": config.train.micro_batch_tokens,
        "steps_per_epoch": plan.steps_per_epoch,
        "optimizer_steps": plan.total_steps,
        "warmup_steps": warmup_steps(plan.total_steps, config.train.warmup_ratio),
        "samples": plan.samples_after(plan.total_steps),
        "workers": config.resources.max_workers,
        "without_ray": runs_alone(config) or not config.resources.max_workers,
        "gpus_per_worker": config.resources.gpus_per_worker,
        "threads_per_worker": worker_threads(config),
        "loss": {k: v for k, v in config.loss.weights().items() if v > 0},
        "refused_here": refused_here(config),
    }


def show_plan(console: Console, plan: dict[str, Any]) -> None:
    """The plan as a table for people."""
    counts = plan["parameters"]
    trained = counts["adapter"] + counts["projection"]
    where = f"{plan['workers']} Ray worker(s)" if plan["workers"] else "this process, no Ray"
    if plan["without_ray"] and plan["workers"]:
        where = "a process of its own, no Ray"
    if plan["gpus_per_worker"]:
        placed = f"{where}, {plan['gpus_per_worker']:g} GPU each"
    else:
        placed = f"{where}, {plan['threads_per_worker']} of {available_cores()} CPU cores each"
    weights = ", ".join(f"{name} {weight:g}" for name, weight in plan["loss"].items())
    rows = [
        ("model", f"{plan['model']} ({counts['base']:,} frozen, {plan['quantization']})"),
        ("trained", f"{trained:,} ({counts['adapter']:,} LoRA + {counts['projection']:,} head)"),
        ("data", f"{plan['train_triplets']:,} triplets to train on, "
                 f"{plan['validation_triplets']:,} to validate; "
                 f"{plan['mean_triplet_tokens']:g} tokens each"),
        ("steps", f"{plan['optimizer_steps']:,} optimizer steps of {plan['global_batch']} "
                  f"triplets ({plan['warmup_steps']} warm-up), "
                  f"{plan['train_tokens']:,} tokens in all"),
        ("micro-batch", f"at most {plan['micro_batch_tokens']:,} tree nodes"),
        ("loss", weights),
        ("runs on", placed),
    ]  # fmt: skip
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, plain(value))
    console.print(table)
