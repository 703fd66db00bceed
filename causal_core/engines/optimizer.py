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
from causal_core.quantised import bitsandbytes
from causal_core.visible_text import quoted

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
    bnb = bitsandbytes()

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
    if problems := optimizer_problems(parameters, tensors, values):
        raise CheckpointError(
            problems[0] + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else "")
        )
    restored = _by_parameter(tensors, values)
    for name, parameter in parameters.items():
        if name in restored:
            optimizer.state[parameter] = {
                key: _placed(optimizer, parameter, key, value)
                for key, value in restored[name].items()
            }


def optimizer_problems(
    weights: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    values: Mapping[str, Mapping[str, Any]],
) -> list[str]:
    """Why saved state is not one that an optimizer of these parameters has after some steps.

    State of no parameter at all is one: nothing has moved yet. A moment of the wrong size would be
    read beyond its end by an 8-bit kernel, and a NaN in it would end the run steps later.
    """
    restored = _by_parameter(tensors, values)
    problems = [
        f"optimizer state of {quoted(name)}, which is no trainable parameter of this model"
        for name in restored
        if name not in weights
    ]
    missing = [name for name in weights if name not in restored]
    if missing and len(missing) < len(weights):
        problems.append(
            f"no optimizer state for {len(missing)} of {len(weights)} parameters, "
            f"e.g. {quoted(missing[0])}"
        )
    for name, state in restored.items():
        if name in weights and (problem := _state_problem(weights[name], state)):
            problems.append(f"optimizer state of {quoted(name)}: {problem}")
    return problems


def optimizer_steps(tensors: Mapping[str, Tensor], values: Mapping[str, Mapping[str, Any]]) -> int:
    """How often saved state, without `optimizer_problems`, has moved the weights: a parameter
    counts the steps that had a gradient for it."""
    states = _by_parameter(tensors, values).values()
    return max((int(state["step"]) for state in states), default=0)


def of_another_optimizer(
    tensors: Mapping[str, Tensor], values: Mapping[str, Mapping[str, Any]], name: str
) -> str | None:
    """The first parameter whose saved state is not of the optimizer of that config name."""
    for parameter, state in _by_parameter(tensors, values).items():
        if (state.keys() == _ADAMW) != (name == "adamw"):
            return parameter
    return None


_ADAMW = frozenset({"exp_avg", "exp_avg_sq", "step"})
_EIGHT_BIT = frozenset({"state1", "state2", "step"})  # small parameters keep 32 bits
_QUANTISED = _EIGHT_BIT | {"qmap1", "qmap2", "absmax1", "absmax2"}
_BLOCK = 256  # elements that share a scale in bitsandbytes' block-wise optimizers
_SECOND_MOMENTS = ("exp_avg_sq", "state2")


def _state_problem(weight: Tensor, state: Mapping[str, Any]) -> str | None:
    shape, keys = weight.shape, frozenset(state)
    if keys not in (_ADAMW, _EIGHT_BIT, _QUANTISED):
        return f"no optimizer here keeps {quoted(', '.join(sorted(keys)))}"
    if not _is_count(state["step"], of_torch=keys == _ADAMW):
        return f"its step is {quoted(state['step'])}, not a whole number as its optimizer counts"
    kinds = {_QUANTISED: torch.uint8, _EIGHT_BIT: torch.float32, _ADAMW: weight.dtype}
    blocks = -(-shape.numel() // _BLOCK)
    expected = dict.fromkeys(MOMENTS, (shape, kinds[keys]))
    expected |= {f"qmap{n}": (torch.Size([256]), torch.float32) for n in (1, 2)}
    expected |= {f"absmax{n}": (torch.Size([blocks]), torch.float32) for n in (1, 2)}
    for key in keys - {"step"}:
        value, (wanted, kind) = state[key], expected[key]
        if not isinstance(value, Tensor):
            return f"{key} is no tensor"
        if value.shape != wanted or value.dtype != kind:
            found = f"{tuple(value.shape)} {value.dtype}"
            return f"{key} is {found} instead of {tuple(wanted)} {kind}"
        if kind.is_floating_point and not value.isfinite().all():
            return f"{key} holds values that are not finite"
        if key in _SECOND_MOMENTS and (value < 0).any():
            return f"{key} holds negative values, and squares are none"
    return None


def _is_count(step: Any, of_torch: bool) -> bool:
    """Whether a parameter's step is kept as its optimizer does: torch in a float32 of no dimension,
    bitsandbytes as a plain integer."""
    if of_torch:
        if not isinstance(step, Tensor) or step.dtype != torch.float32 or step.dim():
            return False
        step = step.item()
    elif type(step) is not int:
        return False
    return bool(0 <= step < 2**53 and step == int(step))  # false for a NaN


def _by_parameter(
    tensors: Mapping[str, Tensor], values: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    restored = {name: dict(plain) for name, plain in values.items() if plain}
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition("//")
        restored.setdefault(name, {})[key] = tensor
    return restored


def _placed(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, key: str, value: Any) -> Any:
    """A copy of a state value where the optimizer wants it: torch keeps Adam's step on the CPU, a
    paged optimizer of bitsandbytes its moments in memory that GPU and host share."""
    if not isinstance(value, Tensor):
        return value
    if key == "step":
        return value.clone()
    if key in MOMENTS and (buffer_of := getattr(optimizer, "get_state_buffer", None)):
        return buffer_of(parameter, dtype=value.dtype).copy_(value)
    return value.to(parameter.device, copy=True)
