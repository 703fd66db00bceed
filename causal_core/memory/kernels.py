"""What the device's kernels allocate where the meta device would do something else.

On meta, scaled dot-product attention falls back to materialised scores, dropout keeps noise of the
activations' type, and a 4-bit product is one opaque operation. Here each is what runs on the
device that is planned for.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.overrides import TorchFunctionMode

from causal_core.memory.tracker import StorageTracker

# The mask of the memory-efficient kernel has rows of a multiple of this many elements
# (torch: aten/native/transformers/attention.cpp, `pad_bias`).
_MASK_ALIGNMENT = 8
_NF4_BLOCK = 64


class DeviceKernels(TorchFunctionMode):
    """Replaces attention and dropout by the operations of `device` ("cuda" or "cpu").

    It is entered by the modules of each decoder layer, not around the step: torch leaves such a
    mode during `backward`, where checkpointed layers run again.

    Args:
        repeat_grouped: Keys and values that heads share are copied for each of them, also where
            a kernel would take them as they are.
    """

    def __init__(self, device: str, tracker: StorageTracker, repeat_grouped: bool = False) -> None:
        super().__init__()
        self._repeat_grouped = repeat_grouped
        self._on_gpu = device == "cuda"
        self._tracker = tracker

    def inside(self, module: nn.Module) -> None:
        """Makes `module` run under this mode, whoever calls it."""
        forward = module.forward

        def under_mode(*args: Any, **kwargs: Any) -> Any:
            with self:
                return forward(*args, **kwargs)

        module.forward = under_mode

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        if isinstance(func, HigherOrderOperator) and func.name() == "flex_attention":
            return _FusedFlex.apply(*args[:3])
        if func is F.dropout and self._on_gpu:
            return _gpu_dropout(*args, **kwargs)
        if func is torch._grouped_mm:  # of experts: on meta it knows bfloat16 alone
            return args[0] @ args[1][0]  # what it allocates, forward and backward
        return func(*args, **kwargs)

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        repeats = query.shape[1] // key.shape[1] if enable_gqa else 1
        if repeats > 1 and (attn_mask is not None or not self._on_gpu or self._repeat_grouped):
            key = key.repeat_interleave(repeats, dim=1)
            value = value.repeat_interleave(repeats, dim=1)
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            before = self._tracker.making("attention_masks")
            attn_mask = _additive(attn_mask, query.dtype, pad=self._on_gpu)
            self._tracker.making(before)
        aten = torch.ops.aten
        if not self._on_gpu:
            return aten._scaled_dot_product_flash_attention_for_cpu(
                query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
            )[0]
        if attn_mask is None:
            return aten._scaled_dot_product_flash_attention(
                query, key, value, dropout_p, is_causal, False, scale=scale
            )[0]
        expanded = attn_mask.expand(*query.shape[:2], query.shape[2], key.shape[2])
        with_grad = torch.is_grad_enabled() and query.requires_grad
        return aten._scaled_dot_product_efficient_attention(
            query, key, value, expanded, with_grad, dropout_p, is_causal, scale=scale
        )[0]


class _FusedFlex(torch.autograd.Function):
    """What FlexAttention's kernels allocate: no scores, one normaliser a query."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, query: Tensor, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Output, normaliser and (without a place of its own) the largest score of each query."""
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        normaliser = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, normaliser)
        return out, normaliser, query.new_empty(0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        query, key, value, _, normaliser = ctx.saved_tensors
        along = torch.empty_like(normaliser)  # the sum of output times its gradient
        found = tuple(torch.empty_like(values) for values in (query, key, value))
        del along
        return found


def _additive(mask: Tensor, dtype: torch.dtype, pad: bool) -> Tensor:
    """A boolean mask as torch converts it before a fused kernel: zeros and -inf."""
    added = torch.zeros_like(mask, dtype=dtype).masked_fill_(mask.logical_not(), -math.inf)
    width = mask.shape[-1]
    if pad and width % _MASK_ALIGNMENT:
        added = F.pad(added, (0, _MASK_ALIGNMENT - width % _MASK_ALIGNMENT))[..., :width]
    return added


def _gpu_dropout(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    """Keeps a mask of one byte an element."""
    return torch.native_dropout(input, p, True)[0] if training and p > 0 else input


def held_inside(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, ...]:
    """Bytes of the tensors that an opaque operation holds while it makes its output.

    A 4-bit product dequantises the block scales (twice: with and without their offset) and the
    whole weight. Fused kernels that do not exist only for few rows, fewer than training has.
    """
    # Only whoever has bitsandbytes imported knows its operations.
    if func.namespace == "bitsandbytes" and func is torch.ops.bitsandbytes.gemm_4bit.default:
        elements = math.prod(args[2])
        scales = 4 * (elements // _NF4_BLOCK)
        return (scales, elements * args[0].element_size())
    if func is torch.ops.aten._scaled_dot_product_efficient_attention_backward.default:
        query = args[1]
        return (4 * query.shape[0] * query.shape[1] * query.shape[2],)  # row sums of dO * O
    return ()
