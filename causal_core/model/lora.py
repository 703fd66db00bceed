"""The LoRA forward without its needless passes over memory.

PEFT computes `base(x) + B(A(dropout(x))) * s`: two more tensors of the output's size forward, the
same backward, a float32 copy of the input where the base computes in bfloat16, and with dropout a
masked copy of the input for each module. Here the low-rank product is accumulated into the base's
output and into the input's gradient by the matrix product itself, in the base's type, dropout
keeps one byte an element, and behind a gate only the gate's inputs are kept. Modules, parameters,
names and checkpoints stay PEFT's own.

    y = x W^T + s (m * x) A^T B^T,  m: dropout mask / (1 - p)

Shape legend: N tokens (all leading dimensions), I inputs and O outputs of the module, r rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from causal_core.model.frozen_layers import swiglu
from causal_core.model.matmul import frozen_linear, linear, use_frozen_linear


class _DenseLora(torch.autograd.Function):
    """The whole module where the frozen base is a plain linear."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x_NI: Tensor, up_NI: Tensor | None, weight_OI: Tensor, bias_O: Tensor | None,
        a_rI: Tensor, b_Or: Tensor, scale: float, mask_NI: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """The module's output, y_NO; the mask is bool.

        With `up` the module's input is silu(x) * up, which is not kept.
        """
        inner_NI = x_NI if up_NI is None else F.silu(x_NI).mul_(up_NI)
        y_NO = frozen_linear(inner_NI, weight_OI, bias_O)
        low_Nr = linear(_masked(inner_NI, mask_NI), a_rI)
        y_NO.addmm_(low_Nr, b_Or.t(), alpha=scale)
        ctx.save_for_backward(x_NI, up_NI, weight_OI, a_rI, b_Or, low_Nr, mask_NI)
        ctx.scale = scale
        return y_NO

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x_NI, up_NI, weight_OI, a_rI, b_Or, low_Nr, mask_NI = ctx.saved_tensors
        silu_NI = F.silu(x_NI) if up_NI is not None else x_NI
        inner_NI = silu_NI * up_NI if up_NI is not None else x_NI
        grad_low_Nr, grad_a_rI, grad_b_Or = _low_rank_gradients(
            grads[0], inner_NI, b_Or, low_Nr, mask_NI, ctx.scale
        )
        grad_x_NI = grad_up_NI = None
        if ctx.needs_input_grad[0]:
            grad_x_NI = frozen_linear(grads[0], weight_OI.t())
            if mask_NI is None:
                grad_x_NI.addmm_(grad_low_Nr, a_rI)
            else:
                grad_x_NI += (grad_low_Nr @ a_rI).mul_(mask_NI)
            if up_NI is not None:
                grad_up_NI = silu_NI.mul_(grad_x_NI)
                grad_gate_NI = torch.mul(grad_x_NI, up_NI, out=inner_NI)
                grad_x_NI = torch.ops.aten.silu_backward(grad_gate_NI, x_NI)
        return grad_x_NI, grad_up_NI, None, None, grad_a_rI, grad_b_Or, None, None


class _LoraDelta(torch.autograd.Function):
    """Adds the low-rank product to the output of any base layer (a quantised one, say)."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, y_NO: Tensor, x_NI: Tensor, gate_NI: Tensor | None, up_NI: Tensor | None,
        a_rI: Tensor, b_Or: Tensor, scale: float, mask_NI: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """`y` is changed in place; the rest as in `_DenseLora`.

        With `gate` and `up`, of which x is silu(gate) * up, they are kept in its place.
        """
        low_Nr = linear(_masked(x_NI, mask_NI), a_rI)
        y_NO.addmm_(low_Nr, b_Or.t(), alpha=scale)
        ctx.mark_dirty(y_NO)
        ctx.save_for_backward(
            x_NI if gate_NI is None else None, gate_NI, up_NI, a_rI, b_Or, low_Nr, mask_NI
        )
        ctx.scale = scale
        return y_NO

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x_NI, gate_NI, up_NI, a_rI, b_Or, low_Nr, mask_NI = ctx.saved_tensors
        if x_NI is None:
            x_NI = F.silu(gate_NI).mul_(up_NI)
        grad_low_Nr, grad_a_rI, grad_b_Or = _low_rank_gradients(
            grads[0], x_NI, b_Or, low_Nr, mask_NI, ctx.scale
        )
        grad_x_NI = _masked(grad_low_Nr @ a_rI, mask_NI) if ctx.needs_input_grad[1] else None
        return grads[0], grad_x_NI, None, None, grad_a_rI, grad_b_Or, None, None


def _low_rank_gradients(
    grad_NO: Tensor,
    x_NI: Tensor,
    b_Or: Tensor,
    low_Nr: Tensor,
    mask_NI: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the low-rank activation, of A and of B."""
    grad_low_Nr = linear(grad_NO, b_Or.t()).mul_(scale)
    # The narrow matrix first: by columns, the wide one would be read against its order in memory.
    grad_a_rI = linear(grad_low_Nr.t().contiguous(), _masked(x_NI, mask_NI).t())
    grad_b_Or = linear(low_Nr.t().contiguous(), grad_NO.t()).mul_(scale).t()
    return grad_low_Nr, grad_a_rI, grad_b_Or


def _masked(values: Tensor, mask: Tensor | None) -> Tensor:
    return values if mask is None else values * mask


def keep_mask(like: Tensor, dropout: float) -> Tensor:
    """[N, I] bool: each element True with probability 1 - `dropout`, to within 2^-17.

    On CPU from 16-bit lanes of one stream of random integers, which costs a fifth of Bernoulli
    draws; either way from torch's generator, so that a recomputation draws the same. Compilers
    know Bernoulli draws alone.
    """
    if like.device.type != "cpu" or torch.compiler.is_compiling():
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
        base = module.base_layer if isinstance(module, LoraLayer) else None
        if isinstance(base, nn.Linear) and not getattr(module, "fan_in_fan_out", False):
            module.forward = MethodType(_lora_forward, module)
            module.applies_swiglu = True  # type: ignore[assignment]
            use_frozen_linear(base)  # which PEFT calls, where the adapter is off
            count += 1
    return count


@contextmanager
def without_adapter(model: nn.Module) -> Iterator[None]:
    """The model as its frozen base computes, while the context lasts.

    PEFT's own context also takes the parameters' `requires_grad` away and gives it back, which an
    engine that holds on to them should not see.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [
        m for m in model.modules() if isinstance(m, BaseTunerLayer) and not m.disable_adapters
    ]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False
