"""Attention over a prefix tree whose nodes lie in one flat sequence, block by block.

The function below is registered with transformers under `ATTENTION`; without a tree it is the
library's own `sdpa`, so that generation and plain forwards through the same model stay as they
were.

Shape legend: N nodes, q queries and k keys of a block, h query heads, j key/value heads,
g = h / j query heads per key/value head, d width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from causal_core.trees.blocks import Block, TreeBlocks

ATTENTION = "prefix_tree"


class _BlockAttention(torch.autograd.Function):
    """softmax(q k^T scale + mask) v per block, by torch's flash kernel for CPU.

    Query heads that share a key/value head are a dimension of their own, so keys and values are
    neither repeated nor, where their ranges join, copied.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, tree: TreeBlocks, scale: float
    ) -> Tensor:
        """query [h, N, d], key and value [j, N, d] -> [N, h, d]."""
        heads, nodes, width = query.shape
        out = query.new_empty(nodes, heads, width)
        normalisers = []
        for block, mask in zip(tree.blocks, tree.masks(query.dtype), strict=True):
            q, k, v = _operands(block, query, key, value)
            o, normaliser = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                q, k, v, 0.0, mask is None, attn_mask=_like(mask, q), scale=scale
            )
            _heads_of(out[block.start : block.stop], key.shape[0]).copy_(o)
            normalisers.append(normaliser)
        ctx.save_for_backward(query, key, value, out, *normalisers)
        ctx.tree, ctx.scale = tree, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        grad_out = grads[0]
        query, key, value, out, *normalisers = ctx.saved_tensors
        grouped = key.shape[0]
        # In the memory layout of the projections, [N, heads, d]: no copy on the way back.
        grad_query = torch.empty_like(out).transpose(0, 1)
        shape = (key.shape[1], grouped, key.shape[2])
        grad_key, grad_value = (key.new_zeros(shape).transpose(0, 1) for _ in range(2))
        masks = ctx.tree.masks(query.dtype)
        for block, mask, normaliser in zip(ctx.tree.blocks, masks, normalisers, strict=True):
            rows = slice(block.start, block.stop)
            q, k, v = _operands(block, query, key, value)
            dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                _heads_of(grad_out[rows], grouped), q, k, v, _heads_of(out[rows], grouped),
                normaliser, 0.0, mask is None, attn_mask=_like(mask, q), scale=ctx.scale,
            )  # fmt: skip
            grad_query[:, rows].unflatten(0, (grouped, -1)).copy_(dq)
            _add_ranges(grad_key, block.keys, dk.sum(1))
            _add_ranges(grad_value, block.keys, dv.sum(1))
        return grad_query, grad_key, grad_value, None, None


def _operands(
    block: Block, query: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """[j, g, q, d], and twice [j, g, k, d] with a stride of 0 over g."""
    grouped = key.shape[0]
    q = query[:, block.start : block.stop].unflatten(0, (grouped, -1))
    group = q.shape[1]
    k, v = (_ranges(t, block.keys).unsqueeze(1).expand(-1, group, -1, -1) for t in (key, value))
    return q, k, v


def _ranges(values: Tensor, ranges: tuple[tuple[int, int], ...]) -> Tensor:
    parts = [values[:, start:stop] for start, stop in ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _add_ranges(target: Tensor, ranges: tuple[tuple[int, int], ...], values: Tensor) -> None:
    offset = 0
    for start, stop in ranges:
        target[:, start:stop] += values[:, offset : offset + stop - start]
        offset += stop - start


def _heads_of(rows: Tensor, grouped: int) -> Tensor:
    """[q, h, d] -> [j, g, q, d], a view."""
    return rows.transpose(0, 1).unflatten(0, (grouped, -1))


def _like(mask: Tensor | None, q: Tensor) -> Tensor | None:
    return None if mask is None else mask.expand(q.shape[0], q.shape[1], -1, -1)


def tree_attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    tree_blocks: TreeBlocks | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """The attention function that transformers calls in every layer.

    Args:
        query: [1, h, N, d] with `tree_blocks`; otherwise as for `sdpa`.
        tree_blocks: Passed as keyword to the decoder's forward by `CausalModel`.
    """
    if tree_blocks is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    scale = options.get("scaling") or query.shape[-1] ** -0.5
    tree_blocks.calls += 1
    out = _BlockAttention.apply(
        query.squeeze(0), key.squeeze(0), value.squeeze(0), tree_blocks, scale
    )
    return out.unsqueeze(0), None


AttentionInterface.register(ATTENTION, tree_attention_forward)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
