"""Attention of some queries to some keys, forward and backward, with what models add to it.

    o = softmax([c, sink]) [v, 0],  c = cap tanh(s / cap) + mask,  s = scale q k^T

where the soft cap (Gemma 2) and the sink (GPT-OSS, one number a head) may be absent. Without a cap
torch's flash kernel for CPU computes it. A sink then only scales its output, since the kernel gives
the normaliser too: with log(exp(normaliser) + exp(sink)) in its place, the kernel's own backward is
that of attention with a sink. With a cap, or elsewhere, scores are made some queries at a time.

Shape legend: j key/value heads, g query heads per key/value head, q queries, k keys, d width of a
head, e width of a value.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from causal_core.device import at_least_float32

_QUERIES_AT_ONCE = 256  # of which scores exist where no fused kernel makes them


@dataclass(frozen=True)
class Attention:
    """What a layer asks of its attention, beside the tree."""

    scale: float
    window: int | None = None  # nodes of its path that a node attends to, itself included
    cap: float | None = None
    sinks: Tensor | None = None  # [h], frozen

    @property
    def is_plain(self) -> bool:
        """Whether a mask is all that it needs beside queries, keys and values."""
        return self.cap is None and self.sinks is None

    def sinks_of(self, q: Tensor) -> Tensor | None:
        """[j, g, 1] in float32 at least, for queries [j, g, q, d]."""
        if self.sinks is None:
            return None
        return at_least_float32(self.sinks.detach()).view(q.shape[0], q.shape[1], 1).to(q.device)


def forward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, attention: Attention
) -> tuple[Tensor, Tensor]:
    """Output [j, g, q, e] and normaliser [j, g, q].

    Args:
        q: [j, g, q, d].
        k: [j, g, k, d], v: [j, g, k, e]; strides of 0 over g are welcome.
        mask: [q, k], additive or boolean (True: may attend); None: causal, the first query at the
            first key.
    """
    if not _has_flash(q, k, v, attention):
        parts = [
            _plain_forward(q[:, :, rows], k, v, _rows_of(mask, rows, k), attention)
            for rows in _slices(q)
        ]
        outs, normalisers = zip(*parts, strict=True)
        return torch.cat(outs, dim=2), torch.cat(normalisers, dim=2)
    out, normaliser = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, mask is None, attn_mask=_like(mask, q), scale=attention.scale
    )
    sinks = attention.sinks_of(q)
    if sinks is not None:
        out = out * torch.sigmoid(normaliser - sinks).unsqueeze(-1).to(out.dtype)
        normaliser = torch.logaddexp(normaliser, sinks)
    return out, normaliser


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    attention: Attention,
    out: Tensor,
    normaliser: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, where `forward` gave `out` and `normaliser` for them."""
    if _has_flash(q, k, v, attention):
        dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, normaliser, 0.0, mask is None,
            attn_mask=_like(mask, q), scale=attention.scale,
        )  # fmt: skip
        return dq, dk, dv
    queries = []
    keys, values = (at_least_float32(t.new_zeros(t.shape)) for t in (k, v))
    for rows in _slices(q):
        dq, dk, dv = _plain_backward(
            grad[:, :, rows], q[:, :, rows], k, v, _rows_of(mask, rows, k), attention,
            out[:, :, rows], normaliser[:, :, rows],
        )  # fmt: skip
        queries.append(dq)
        keys += dk
        values += dv
    return torch.cat(queries, dim=2), keys.to(k.dtype), values.to(v.dtype)


def newest(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, attention: Attention) -> Tensor:
    """Output [R, j, g, n, e] of the n newest nodes of each of R sequences; nothing for a backward.

    The query heads that share a key/value head are the queries of one product.

    Args:
        q: [R, j, g, n, d], k: [R, j, k, d], v: [R, j, k, e].
        mask: [R, 1, n, k] boolean (True: may attend).
    """
    group, count = q.shape[2:4]
    q = q.flatten(2, 3)
    mask = mask.repeat(1, 1, group, 1) if count > 1 else mask
    if attention.is_plain:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=attention.scale)
        return out.unflatten(2, (group, count))
    scores, _ = _scores(q, k, _additive(mask, k.dtype), attention)
    normaliser = torch.logsumexp(scores, dim=-1)
    if attention.sinks is not None:
        sinks = at_least_float32(attention.sinks).view(k.shape[1], group, 1).to(q.device)
        normaliser = torch.logaddexp(normaliser, sinks.expand(-1, -1, count).flatten(1))
    out = torch.exp(scores - normaliser.unsqueeze(-1)).to(v.dtype) @ v
    return out.unflatten(2, (group, count))


def _has_flash(q: Tensor, k: Tensor, v: Tensor, attention: Attention) -> bool:
    # On the meta device this kernel stands for the CPU's (`memory/trace.py`).
    return attention.cap is None and q.device.type in ("cpu", "meta") and v.shape[-1] == k.shape[-1]


def _slices(q: Tensor) -> list[slice]:
    return [slice(i, i + _QUERIES_AT_ONCE) for i in range(0, q.shape[2], _QUERIES_AT_ONCE)]


def _rows_of(mask: Tensor | None, rows: slice, k: Tensor) -> Tensor:
    """Additive mask [rows, k] of some of the queries."""
    if mask is None:
        stop = min(rows.stop, k.shape[2])
        queries = torch.arange(rows.start, stop, device=k.device)
        mask = torch.arange(k.shape[2], device=k.device)[None] <= queries[:, None]
    else:
        mask = mask[rows].to(k.device)
    return _additive(mask, k.dtype)


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask
    added = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return added.masked_fill_(mask.logical_not(), -torch.inf)


def _scores(
    q: Tensor, k: Tensor, mask: Tensor, attention: Attention
) -> tuple[Tensor, Tensor | None]:
    """c [j, g, q, k] in float32 at least, and tanh(s / cap) where there is a cap."""
    scores = at_least_float32(q @ k.transpose(-1, -2)) * attention.scale
    if attention.cap is None:
        return scores + mask, None
    bent = torch.tanh(scores / attention.cap)
    return bent * attention.cap + mask, bent


def _plain_forward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, attention: Attention
) -> tuple[Tensor, Tensor]:
    scores, _ = _scores(q, k, mask, attention)
    normaliser = torch.logsumexp(scores, dim=-1)
    sinks = attention.sinks_of(q)
    if sinks is not None:
        normaliser = torch.logaddexp(normaliser, sinks)
    # A query without any key (padding on the left of a batch) gives 0.
    normaliser = normaliser.masked_fill(normaliser == -torch.inf, 0.0)
    shares = torch.exp(scores - normaliser.unsqueeze(-1)).to(v.dtype)
    return shares @ v, normaliser


def _plain_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    attention: Attention,
    out: Tensor,
    normaliser: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    scores, bent = _scores(q, k, mask, attention)
    shares = torch.exp(scores - normaliser.unsqueeze(-1))
    along = (at_least_float32(grad) * at_least_float32(out)).sum(-1, keepdim=True)
    grad_scores = shares * (at_least_float32(grad @ v.transpose(-1, -2)) - along)
    if bent is not None:
        grad_scores = grad_scores * (1.0 - bent * bent)
    grad_scores = (grad_scores * attention.scale).to(q.dtype)
    return (
        grad_scores @ k,
        grad_scores.transpose(-1, -2) @ q,
        shares.to(grad.dtype).transpose(-1, -2) @ grad,
    )


def _like(mask: Tensor | None, q: Tensor) -> Tensor | None:
    return None if mask is None else _additive(mask, q.dtype).expand(*q.shape[:2], -1, -1)
