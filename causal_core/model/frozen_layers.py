"""Norms and gates of Llama-like layers in fewer passes over memory, with what they save halved.

Frozen base layers need only the gradient of their input, so these keep their inputs and compute
the rest again: RMSNorm keeps x and one number a token, SwiGLU keeps its two inputs and not their
activation. Where a module computes something else than expected, it stays as it is.
"""

from __future__ import annotations

import copy
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_WIDE = (torch.float32, torch.float64)


class _SwiGlu(torch.autograd.Function):
    """silu(gate) * up (Shazeer, 2020), element-wise."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        gate, up = ctx.saved_tensors
        grad_gate = torch.ops.aten.silu_backward(grads[0] * up, gate)
        return grad_gate, F.silu(gate).mul_(grads[0])


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, element-wise; keeps its two inputs for the backward."""
    result: Tensor = _SwiGlu.apply(gate, up)
    return result


class _RmsNorm(torch.autograd.Function):
    """x / sqrt(mean(x^2) + eps) * weight with a frozen weight (Zhang and Sennrich, 2019)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:  # type: ignore[override]
        """x [..., H], weight [H] -> [..., H]."""
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        scale = scale.div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight, scale = ctx.saved_tensors
        inner = grads[0] * weight
        along = torch.linalg.vecdot(inner, x).unsqueeze(-1)
        return inner.mul_(scale).addcmul_(x, along * scale**3 / -x.shape[-1]), None, None


def _norm_forward(self: Any, hidden_states: Tensor) -> Tensor:
    # Half types keep the library's own sequence of casts.
    if hidden_states.dtype not in _WIDE or self.weight.dtype is not hidden_states.dtype:
        result: Tensor = type(self).forward(self, hidden_states)
        return result
    return _RmsNorm.apply(hidden_states, self.weight, self.variance_epsilon)


def _gated_forward(self: Any, x: Tensor) -> Tensor:
    gate, up, down = self.gate_proj(x), self.up_proj(x), self.down_proj
    # A LoRA layer of `lora.py` forgets its input and computes it from these two again.
    result: Tensor = (
        down(gate, up=up) if hasattr(down, "applies_swiglu") else down(swiglu(gate, up))
    )
    return result


def use_fused_layers(base: nn.Module) -> int:
    """Gives the norms and gated feed-forwards of a frozen model these forwards; returns how many.

    A module is recognised by its parts, and kept as it is unless both ways agree on random input.
    """
    count = 0
    for module in base.modules():
        if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            count += _replace(module, _norm_forward, _is_rms_norm(module))
        elif all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")):
            count += _replace(module, _gated_forward, _is_swiglu(module))
    return count


def _replace(module: nn.Module, forward: Any, agrees: bool) -> int:
    if agrees and "forward" not in module.__dict__:
        module.forward = MethodType(forward, module)
        return 1
    return 0


class _Times(nn.Module):
    """In the place of a projection: a product with a number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self._factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self._factor


def _is_swiglu(module: Any) -> bool:
    """By the module's own code around projections that are numbers: some scale, clip or drop."""
    probe = torch.linspace(-4.0, 4.0, 17, device="cpu")
    own = copy.copy(module)
    numbers = {"gate_proj": _Times(0.75), "up_proj": _Times(-1.5), "down_proj": _Times(0.5)}
    own._modules = {**module._modules, **numbers}
    try:
        found = type(module).forward(own, probe)
        return torch.allclose(found, F.silu(probe * 0.75) * (probe * -1.5) * 0.5, atol=1e-6)
    except (AttributeError, RuntimeError, TypeError):
        return False


def _is_rms_norm(module: Any) -> bool:
    """By the module's own code on a small weight: some add 1 to the weight, some have a bias."""
    width = 8
    probe = torch.linspace(-2.0, 2.0, 2 * width, device="cpu").view(2, width)
    trained = module.weight.requires_grad
    original = module._parameters["weight"]
    try:
        weight = torch.linspace(0.5, 1.5, width, device="cpu")
        module._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
        found = type(module).forward(module, probe)
        expected = probe * (probe.square().mean(-1, keepdim=True) + module.variance_epsilon).rsqrt()
        return not trained and torch.allclose(found, expected * weight, atol=1e-6)
    except (RuntimeError, TypeError):
        return False
    finally:
        module._parameters["weight"] = original
