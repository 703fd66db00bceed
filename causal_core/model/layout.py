"""Which layout of micro-batches a model gets on a device: the fast one, where its kernels take it.

On a GPU that is a flat tree under FlexAttention. Its kernel is compiled for a model's heads, so it
is tried on them first, against plain attention; where it cannot be made or differs, rows under
dense masks do the same work in more micro-batches, and the log says why.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from causal_core.model.attention_kernels import Attention
from causal_core.model.causal_model import CausalModel
from causal_core.model.flex import attend, prepare
from causal_core.trees.intervals import BUCKET, TreeIntervals
from causal_core.trees.packing import ROWS, Packing, preferred_packing
from causal_core.trees.staging import on_device

log = logging.getLogger(__name__)

_LEAST_WIDTH = 16  # of a head: below, torch has no such kernel


def packing_for(model: CausalModel, device: torch.device) -> Packing:
    """The layout of a model on a device."""
    chosen = preferred_packing(device)
    if not chosen.intervals:
        return chosen
    config: Any = model.peft_model.get_base_model().config.get_text_config()
    dtype = model.peft_model.get_input_embeddings().weight.dtype
    reason = reason_against_flex(*head_shape(config), dtype, device)
    return chosen if reason is None else ROWS


def head_shape(text_config: Any) -> tuple[int, int, int, int]:
    """Query heads, key/value heads, the width of a head and of a value."""
    heads = int(text_config.num_attention_heads)
    grouped = int(getattr(text_config, "num_key_value_heads", None) or heads)
    width = getattr(text_config, "qk_head_dim", None) or getattr(text_config, "head_dim", None)
    width = int(width or text_config.hidden_size // heads)
    return heads, grouped, width, int(getattr(text_config, "v_head_dim", None) or width)


@cache
def reason_against_flex(
    heads: int, grouped: int, width: int, value_width: int, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Why FlexAttention does not serve such heads on a device; None where it does.

    The first call compiles its kernels, forward and backward.
    """
    reason = None
    if min(width, value_width) < _LEAST_WIDTH:
        reason = f"heads of {min(width, value_width)} are narrower than {_LEAST_WIDTH}"
    else:
        try:
            apart = _apart(heads, grouped, width, value_width, dtype, device)
            bound = rounding(dtype, device) ** 0.5  # half of the digits, as in the self-test
            if not apart <= bound:
                reason = f"its results are {apart:.2g} from plain attention's ({bound:.2g} allowed)"
        except Exception as error:  # noqa: BLE001 - whatever a compiler or a driver can raise
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reason = f"{type(error).__name__}: {(lines or ['without a message'])[0][:200]}"
    if reason is not None:
        log.warning(
            "micro-batches are laid out in padded rows instead of flat trees, which takes more of "
            "them: FlexAttention does not serve this model here (%s)", reason,
        )  # fmt: skip
    return reason


def _apart(
    heads: int, grouped: int, width: int, value_width: int, dtype: torch.dtype, device: torch.device
) -> float:
    """Largest relative difference of output and gradients to plain attention, on a small tree."""
    nodes, fork, second = 2 * BUCKET, 100, 180  # a trunk, a branch, and one more from the fork on
    parents = list(range(-1, nodes - 1))
    parents[second] = fork - 1
    tree = TreeIntervals.of(parents)
    generator = torch.Generator().manual_seed(0)
    shapes = ((heads, width), (grouped, width), (grouped, value_width), (heads, value_width))
    drawn = [torch.randn(1, n, nodes, size, generator=generator).to(dtype) for n, size in shapes]
    attention = Attention(scale=width**-0.5)

    def by(attend_to: Callable[..., Tensor], to: Callable[[Tensor], Tensor]) -> list[Tensor]:
        *inputs, towards = (to(values) for values in drawn)
        for values in inputs:
            values.requires_grad_()
        out = attend_to(*inputs).transpose(1, 2)
        found = [out, *torch.autograd.grad(out, inputs, towards)]
        return [values.detach().double().cpu() for values in found]

    def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        at = torch.arange(nodes)
        mask = (at[None] <= at[:, None]) & (at[:, None] < tree.end[None])
        return F.scaled_dot_product_attention(
            query, key, value, mask, scale=attention.scale, enable_gqa=True
        ).transpose(1, 2)

    there = on_device(tree, device)
    prepare(there, [None])

    def flex(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attend(query, key, value, there, attention)

    found = by(flex, lambda values: values.to(device))
    expected = by(plain, lambda values: values.double())
    return max(
        float((one - other).norm() / other.norm())
        for one, other in zip(found, expected, strict=True)
    )


def rounding(dtype: torch.dtype, device: torch.device) -> float:
    """Of one matrix product of a type on a device, relative."""
    if dtype is torch.float32 and device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32:
        return 2.0**-11
    return torch.finfo(dtype).eps
