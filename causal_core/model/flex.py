"""Attention over a flat tree by torch's FlexAttention: one fused kernel for what the tree allows.

The tree is the kernel's mask (`trees/intervals.py`), a window another condition of it, a soft cap a
change of the scores, and a sink scales the output by the normaliser that the kernel gives. On a GPU
torch compiles the kernel (Dong et al., 2024); elsewhere the same operation runs in plain math over
all scores, which is what the tests of exactness use.

Shape legend: N nodes, h query heads, j key/value heads, d width of a head, e width of a value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from causal_core.device import at_least_float32
from causal_core.model.attention_kernels import Attention
from causal_core.trees.intervals import BUCKET, TreeIntervals
from causal_core.trees.staging import on_device


def prepare(tree: TreeIntervals, windows: Iterable[int | None]) -> None:
    """Makes the masks of a model's windows, once for all layers."""
    from torch.nn.attention.flex_attention import BlockMask

    for window in {tree.reach(window) for window in windows} - tree.masks.keys():
        squares, nodes = tree.within(window), len(tree.end)
        there = on_device(squares, tree.end.device)
        tree.masks[window] = BlockMask(
            (nodes, nodes),
            kv_num_blocks=there.mixed_count,
            kv_indices=there.mixed,
            full_kv_num_blocks=there.full_count,
            full_kv_indices=there.full,
            q_num_blocks=there.mixed_count_by_key,
            q_indices=there.mixed_by_key,
            full_q_num_blocks=there.full_count_by_key,
            full_q_indices=there.full_by_key,
            BLOCK_SIZE=(BUCKET, BUCKET),
            mask_mod=_mask(tree, window),
        )


def _mask(tree: TreeIntervals, window: int | None) -> Callable[..., Tensor]:
    end, depth = tree.end, tree.depth

    def below(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < end[key])

    if window is None:
        return below

    def near(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return below(batch, head, query, key) & (depth[query] - depth[key] < window)

    return near


def attend(
    query: Tensor, key: Tensor, value: Tensor, tree: TreeIntervals, attention: Attention
) -> Tensor:
    """query [1, h, N, d], key [1, j, N, d], value [1, j, N, e] -> [1, N, h, e]."""
    reach = tree.reach(attention.window)
    if reach not in tree.masks:  # a window that the model's config does not tell
        prepare(tree, [reach])
    run = _fused if query.device.type == "cuda" else _in_plain_math
    out, normaliser = run(
        query, key, value, _score(attention.cap), tree.masks[reach], attention.scale,
        attention.sinks is not None,
    )  # fmt: skip
    if attention.sinks is not None and normaliser is not None:
        sinks = at_least_float32(attention.sinks.detach()).view(1, -1, 1).to(out.device)
        out = out * torch.sigmoid(normaliser - sinks).unsqueeze(-1).to(out.dtype)
    return out.transpose(1, 2)


def _score(cap: float | None) -> Callable[..., Tensor]:
    if cap is None:
        return lambda score, *_place: score
    return lambda score, *_place: torch.tanh(score / cap) * cap


def _fused(
    query: Tensor, key: Tensor, value: Tensor, score: Any, mask: Any, scale: float, wants: bool
) -> tuple[Tensor, Tensor | None]:
    """Output [1, h, N, e] and, where wanted, natural logarithm of the normaliser [1, h, N]."""
    from torch.nn.attention.flex_attention import AuxRequest, flex_attention

    grouped = query.shape[1] != key.shape[1]
    # Within a layer that is compiled as a whole it is a part of that.
    run: Any = flex_attention if torch.compiler.is_compiling() else _compiled_flex()
    if not wants:
        return run(query, key, value, score, mask, scale, grouped), None
    out, aux = run(query, key, value, score, mask, scale, grouped, return_aux=AuxRequest(lse=True))
    return out, aux.lse


@cache
def _compiled_flex() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def _in_plain_math(
    query: Tensor, key: Tensor, value: Tensor, score: Any, mask: Any, scale: float, wants: bool
) -> tuple[Tensor, Tensor | None]:
    """The same without torch's front, which refuses gradients on a CPU."""
    from torch._higher_order_ops.flex_attention import flex_attention

    out, normaliser, _ = flex_attention(query, key, value, score, mask.as_tuple(), scale, {})
    return out, normaliser * math.log(2) if wants else None
