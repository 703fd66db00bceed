"""The LoRA forward without its needless passes over memory.

PEFT computes `base(x) + B(A(dropout(x))) * s`: two more tensors of the output's size forward, the
same backward, a float32 copy of the input where the base computes in bfloat16, and with dropout a
masked copy of the input for each module. Here the low-rank product is accumulated into the base's
output and into the input's gradient by the matrix product itself, in the base's type, dropout
keeps one byte an element, and behind a gate only the gate's inputs are kept. Modules, parameters,
names and checkpoints stay PEFT's own.

    y = x W^T + s (m * x) A^T B^T,  m: dropout mask / (1 - p)

Shape legend: N tokens (all leading dimensions), in, out, r rank.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from causal_core.model.frozen_layers import swiglu
from causal_core.model.matmul import linear


class _DenseLora(torch.autograd.Function):
    """The whole module where the frozen base is a plain linear."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, up: Tensor | None, weight: Tensor, bias: Tensor | None, a: Tensor,
        b: Tensor, scale: float, mask: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """x [N, in], weight [out, in], a [r, in], b [out, r], mask [N, in] bool -> [N, out].

        With `up` [N, in] the module's input is silu(x) * up, which is not kept.
        """
        inner = x if up is None else F.silu(x).mul_(up)
        y = linear(inner, weight, bias)
        low = linear(_masked(inner, mask), a)
        y.addmm_(low, b.t(), alpha=scale)
        ctx.save_for_backward(x, up, weight, a, b, low, mask)
        ctx.scale = scale
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, up, weight, a, b, low, mask = ctx.saved_tensors
        silu = F.silu(x) if up is not None else x
        inner = silu * up if up is not None else x
        grad_low, grad_a, grad_b = _low_rank_gradients(grads[0], inner, b, low, mask, ctx.scale)
        grad_x = grad_up = None
        if ctx.needs_input_grad[0]:
            grad_x = linear(grads[0], weight.t())
            if mask is None:
                grad_x.addmm_(grad_low, a)
            else:
                grad_x += (grad_low @ a).mul_(mask)
            if up is not None:
                grad_up = silu.mul_(grad_x)
                grad_gate = torch.mul(grad_x, up, out=inner)
                grad_x = torch.ops.aten.silu_backward(grad_gate, x)
        return grad_x, grad_up, None, None, grad_a, grad_b, None, None


class _LoraDelta(torch.autograd.Function):
    """Adds the low-rank product to the output of any base layer (a quantised one, say)."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, y: Tensor, x: Tensor, gate: Tensor | None, up: Tensor | None, a: Tensor,
        b: Tensor, scale: float, mask: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """y [N, out] is changed in place; the rest as in `_DenseLora`.

        With `gate` and `up` [N, in], of which x is silu(gate) * up, they are kept in its place.
        """
        low = linear(_masked(x, mask), a)
        y.addmm_(low, b.t(), alpha=scale)
        ctx.mark_dirty(y)
        ctx.save_for_backward(x if gate is None else None, gate, up, a, b, low, mask)
        ctx.scale = scale
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, gate, up, a, b, low, mask = ctx.saved_tensors
        if x is None:
            x = F.silu(gate).mul_(up)
        grad_low, grad_a, grad_b = _low_rank_gradients(grads[0], x, b, low, mask, ctx.scale)
        grad_x = _masked(grad_low @ a, mask) if ctx.needs_input_grad[1] else None
        return grads[0], grad_x, None, None, grad_a, grad_b, None, None


def _low_rank_gradients(
    grad: Tensor, x: Tensor, b: Tensor, low: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the low-rank activation [N, r], of A and of B."""
    grad_low = linear(grad, b.t()).mul_(scale)
    # The narrow matrix first: by columns, the wide one would be read against its order in memory.
    grad_a = linear(grad_low.t().contiguous(), _masked(x, mask).t())
    grad_b = linear(low.t().contiguous(), grad.t()).mul_(scale).t()
    return grad_low, grad_a, grad_b


def _masked(values: Tensor, mask: Tensor | None) -> Tensor:
    return values if mask is None else values * mask


def keep_mask(like: Tensor, dropout: float) -> Tensor:
    """[N, in] bool: each element True with probability 1 - `dropout`, to within 2^-17.

    On CPU from 16-bit lanes of one stream of random integers, which costs a fifth of Bernoulli
    draws; either way from torch's generator, so that a recomputation draws the same.
    """
    if like.device.type != "cpu":
        return torch.empty_like(like, dtype=torch.bool).bernoulli_(1.0 - dropout)
    words = torch.empty((like.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    lanes = words.view(torch.int16)[: like.numel()].view(like.shape)
    return lanes >= round(dropout * 2**16) - 2**15


def _lora_forward(
    self: Any, x: Tensor, *args: Any, up: Tensor | None = None, **more: Any
) -> Tensor:
    """Replaces `forward` of a PEFT LoRA layer; whatever it does not cover goes to PEFT's own.

    With `up` the layer's input is silu(x) * up.
    """
    adapter = _only_plain_adapter(self)
    if adapter is None or args or more:
        inner = x if up is None else swiglu(x, up)
        result: Tensor = type(self).forward(self, inner, *args, **more)
        return result
    base = self.base_layer
    # Half types: the master copy stays float32, the product runs in the base's type.
    a, b = (m[adapter].weight.to(x.dtype) for m in (self.lora_A, self.lora_B))
    dropout, scale = self.lora_dropout[adapter], self.scaling[adapter]
    flat = x.flatten(0, -2)
    flat_up = None if up is None else up.flatten(0, -2)
    mask = None
    if self.training and isinstance(dropout, nn.Dropout) and dropout.p > 0:
        mask = keep_mask(flat, dropout.p)
        scale = scale / (1.0 - dropout.p)
    if type(base) is nn.Linear:
        y = _DenseLora.apply(flat, flat_up, base.weight, base.bias, a, b, scale, mask)
    elif flat_up is None:
        y = _LoraDelta.apply(base(flat), flat, None, None, a, b, scale, mask)
    else:
        inner = swiglu(flat, flat_up)
        gate = flat.detach()
        y = _LoraDelta.apply(base(inner), inner, gate, flat_up.detach(), a, b, scale, mask)
    return y.unflatten(0, x.shape[:-1])


def _only_plain_adapter(layer: Any) -> str | None:
    """The one active adapter, if it is plain LoRA and its weights are at hand."""
    if layer.disable_adapters or layer.merged or len(layer.active_adapters) != 1:
        return None
    adapter = layer.active_adapters[0]
    if adapter not in layer.lora_A or adapter in layer.lora_variant:
        return None
    # DeepSpeed's ZeRO-3 gathers a module's parameters when that module's forward is called.
    if hasattr(layer.lora_A[adapter].weight, "ds_id") or layer.lora_A[adapter].bias is not None:
        return None
    return None if layer.lora_B[adapter].bias is not None else str(adapter)


def use_fused_lora(peft_model: nn.Module) -> int:
    """Gives every LoRA layer over a linear base the forward of this module; returns how many."""
    from peft.tuners.lora import LoraLayer

    count = 0
    for module in peft_model.modules():
        linear = isinstance(module, LoraLayer) and isinstance(module.base_layer, nn.Linear)
        if linear and not getattr(module, "fan_in_fan_out", False):
            module.forward = MethodType(_lora_forward, module)
            module.takes_up = True  # type: ignore[assignment]
            count += 1
    return count
