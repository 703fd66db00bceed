"""What would make a run smaller: each lever's saving, and the least change that fits a budget."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from causal_core.config import Config
from causal_core.config_file import apply_override, parse_config
from causal_core.errors import ConfigError
from causal_core.memory.fit import (
    STEP,
    largest_micro_batch,
    least_tokens,
    planned_tokens,
    predict_run,
)
from causal_core.memory.plan import Device, MemoryPlan, device_of
from causal_core.memory.shapes import DataProfile


@dataclass(frozen=True)
class Lever:
    """A change of the config and the plan with it."""

    name: str
    overrides: tuple[str, ...]  # as on the command line
    saved_bytes: int  # of allocated peak, against the config as it is; negative: it costs
    required_bytes: int

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "overrides": list(self.overrides)}


def with_overrides(config: Config, overrides: tuple[str, ...]) -> Config:
    """The config with `key.sub=value` changes applied (`ConfigError` where they cannot be)."""
    tree = config.model_dump(mode="json")
    for item in overrides:
        apply_override(tree, item)
    return parse_config(tree)


def levers(
    config: Config, *, device: Device | None = None, data: DataProfile | None = None
) -> list[Lever]:
    """Every lever that the config has not pulled yet, with what it would save."""
    device = device or device_of(config)
    base = predict_run(config, device=device, data=data)
    found = []
    for name, overrides in _candidates(config, device):
        try:
            plan = predict_run(with_overrides(config, overrides), device=device, data=data)
        except ConfigError:
            continue  # this pair of settings is refused
        saved = base.peak_bytes - plan.peak_bytes
        found.append(Lever(name, overrides, saved, plan.required_bytes))
    return found


def nearest_fit(
    config: Config,
    budget_bytes: int,
    *,
    device: Device | None = None,
    data: DataProfile | None = None,
) -> tuple[tuple[str, ...], MemoryPlan] | None:
    """The least change that fits: levers in the order of what they cost in quality or speed.

    Returns:
        The overrides and the plan with them; None where even all of them together do not fit.
    """
    device = device or device_of(config)
    tokens = planned_tokens(config)
    pulled: tuple[str, ...] = ()
    for step in _ladder(config, device):
        try:
            changed = with_overrides(config, (*pulled, *step))
        except ConfigError:
            continue
        pulled = (*pulled, *step)
        fitting = largest_micro_batch(
            changed,
            budget_bytes,
            device=device,
            data=data,
            at_least=min(tokens, least_tokens(changed, data)),
            at_most=tokens,
        )
        if fitting is not None:
            if fitting < tokens:
                pulled = (*pulled, f"train.micro_batch_tokens={fitting}")
            return pulled, predict_run(with_overrides(config, pulled), device=device, data=data)
    return None


def _ladder(config: Config, device: Device) -> Iterator[tuple[str, ...]]:
    yield ()
    if config.train.optimizer == "adamw" and config.engine != "deepspeed":
        yield (f"train.optimizer={'paged_adamw_8bit' if device == 'cuda' else 'adamw_8bit'}",)
    if not config.train.gradient_checkpointing:
        yield ("train.gradient_checkpointing=true",)
    if config.model.dtype == "float32" and device == "cuda":
        yield ("model.dtype=bfloat16",)
    if config.model.quantization == "none":
        yield ("model.quantization=nf4",)
    if config.lora.rank > 8:
        yield ("lora.rank=8",)
    length = config.data.max_length // 2
    while length >= 256:
        yield (f"data.max_length={length}",)
        length //= 2


def _candidates(config: Config, device: Device) -> Iterator[tuple[str, tuple[str, ...]]]:
    train = config.train
    if not train.gradient_checkpointing:
        yield "gradient checkpointing", ("train.gradient_checkpointing=true",)
    if config.model.quantization == "none":
        yield "NF4 base", ("model.quantization=nf4",)
    if config.model.dtype == "float32":
        yield "bfloat16 base", ("model.dtype=bfloat16",)
    if train.optimizer == "adamw":
        yield "8-bit optimizer", ("train.optimizer=adamw_8bit",)
    if train.optimizer != "paged_adamw_8bit" and device == "cuda":
        yield "paged 8-bit optimizer", ("train.optimizer=paged_adamw_8bit",)
    if config.lora.dropout > 0:
        yield "no LoRA dropout", ("lora.dropout=0",)
    if config.lora.rank > 1:
        yield "half the rank", (f"lora.rank={config.lora.rank // 2}",)
    half = max(STEP, planned_tokens(config) // 2)
    yield "half the micro-batch", (f"train.micro_batch_tokens={half}",)
    length = max(16, config.data.max_length // 2)
    yield (
        "half the sequence length",
        (f"data.max_length={length}", f"train.micro_batch_tokens={half}"),
    )
    workers = max(2, config.resources.max_workers)
    for stage in (1, 2, 3):
        if config.engine == "deepspeed" and config.deepspeed.zero_stage >= stage:
            continue
        yield (
            f"ZeRO stage {stage} on {workers} workers",
            ("engine=deepspeed", f"deepspeed.zero_stage={stage}", f"resources.workers={workers}",
             "train.optimizer=adamw"),
        )  # fmt: skip
