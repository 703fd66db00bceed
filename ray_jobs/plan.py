"""What a run is going to do: computed without weights, shown before anything starts."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from causal_core.config import Config
from causal_core.device import available_cores
from causal_core.schedule import warmup_steps
from causal_core.session import RunData, step_plan
from ray_jobs.cluster import worker_threads


def plan_of(config: Config, data: RunData) -> dict[str, Any]:
    """Parameters, steps and tokens of a run, from the model's own configuration and the data."""
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
        "gpus_per_worker": config.resources.gpus_per_worker,
        "threads_per_worker": worker_threads(config),
        "loss": {k: v for k, v in config.loss.weights().items() if v > 0},
    }


def parameter_counts(config: Config) -> dict[str, int]:
    """Adapter, projection and base parameters, counted on a model without weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from causal_core.model import build_model, resolve_model
    from causal_core.session import count_parameters

    source = resolve_model(config.model, config.data.cache_dir)
    described = AutoConfig.from_pretrained(
        source,
        revision=config.model.revision,
        trust_remote_code=config.model.trust_remote_code,
    )
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(
            described, trust_remote_code=config.model.trust_remote_code
        )
        base.requires_grad_(False)
        model = build_model(base, config.lora, config.run.seed)
    return count_parameters(model)


def show_plan(console: Console, plan: dict[str, Any]) -> None:
    """The plan as a table for people."""
    counts = plan["parameters"]
    trained = counts["adapter"] + counts["projection"]
    where = f"{plan['workers']} Ray worker(s)" if plan["workers"] else "this process, no Ray"
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
        ("micro-batch", f"at most {plan['micro_batch_tokens']:,} tree tokens"),
        ("loss", weights),
        ("runs on", placed),
    ]  # fmt: skip
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    console.print(table)
