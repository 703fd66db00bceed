"""Optimizers by config name, and their state keyed by parameter name."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from causal_core.config import TrainSection
from causal_core.errors import CheckpointError

log = logging.getLogger(__name__)

# State that has its parameter's shape: AdamW's names and those of bitsandbytes.
MOMENTS = ("exp_avg", "exp_avg_sq", "state1", "state2")


def build_optimizer(
    parameters: Mapping[str, nn.Parameter], config: TrainSection, device: torch.device
) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters, in the precision that `train.optimizer` names."""
    groups = parameter_groups(parameters, config)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate)
    import bitsandbytes as bnb

    if config.optimizer == "paged_adamw_8bit" and device.type == "cuda":
        return bnb.optim.PagedAdamW8bit(groups, lr=config.learning_rate)
    first = not dist.is_initialized() or dist.get_rank() == 0
    if config.optimizer == "paged_adamw_8bit" and first:
        log.warning("paged_adamw_8bit pages between GPU and host; on CPU adamw_8bit is the same")
    return bnb.optim.AdamW8bit(groups, lr=config.learning_rate)


def parameter_groups(
    parameters: Mapping[str, nn.Parameter], config: TrainSection
) -> list[dict[str, Any]]:
    """Matrices decay, biases and norms do not."""
    decay = [p for p in parameters.values() if p.ndim >= 2]
    rest = [p for p in parameters.values() if p.ndim < 2]
    groups: list[dict[str, Any]] = [
        {"params": decay, "weight_decay": config.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def optimizer_state(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """State by parameter name: tensors as `<parameter>//<key>`, and plain values.

    Names, not positions: a change in the order of parameters cannot hand one parameter another's
    moments (peft#1313).
    """
    tensors: dict[str, Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                # A copy: 8-bit optimizers share their quantisation maps among parameters.
                tensors[f"{name}//{key}"] = value.detach().cpu().contiguous().clone()
            else:
                values.setdefault(name, {})[key] = value
    return tensors, values


def load_optimizer_state(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Tensor],
    values: Mapping[str, Mapping[str, Any]],
) -> None:
    """Puts saved state back, parameter by parameter (`CheckpointError` on any mismatch)."""
    restored: dict[str, dict[str, Any]] = {name: dict(values.get(name, {})) for name in parameters}
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition("//")
        if name not in restored:
            raise CheckpointError(
                f"optimizer state of {name!r}, which is no trainable parameter of this model"
            )
        restored[name][key] = tensor
    stateless = [name for name, state in restored.items() if not state]
    if stateless and len(stateless) < len(restored):
        raise CheckpointError(
            f"no optimizer state for {len(stateless)} of {len(restored)} parameters, "
            f"e.g. {stateless[0]!r}"
        )
    for name, parameter in parameters.items():
        if restored[name]:
            optimizer.state[parameter] = {
                key: _placed(key, value, parameter.device) for key, value in restored[name].items()
            }


def _placed(key: str, value: Any, device: torch.device) -> Any:
    """A copy of a state value where the optimizer wants it: torch keeps Adam's step on the CPU."""
    if not isinstance(value, Tensor):
        return value
    return value.clone() if key == "step" else value.to(device, copy=True)
