"""Attention over a prefix tree, registered with transformers under `ATTENTION`.

Flat trees run block by block or in one kernel (`flex.py`), rows of trees under a dense mask a row,
and in decoding the newest node of each path over the keys and values kept of the others. Windows,
soft caps and sinks are the layer's own, and an option that is not known here is refused: a model is
trained as it will be served, or not at all. Without a tree, in generation and plain forwards
through the same model, it is the library's `sdpa` with those same options.

Shape legend: R rows, N nodes, q queries and k keys of a block, h query heads, j key/value heads,
d width of a head, e width of a value.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from causal_core.errors import ModelError
from causal_core.model import attention_kernels as kernels
from causal_core.model.attention_kernels import Attention
from causal_core.model.flex import attend
from causal_core.trees.blocks import TreeBlocks, TreeRows
from causal_core.trees.intervals import TreeIntervals
from causal_core.trees.path_cache import PathCache

ATTENTION = "prefix_tree"

Ranges = tuple[tuple[int, int], ...]
Tree = TreeBlocks | TreeIntervals | TreeRows | PathCache

# What layers pass on that says nothing about how attention is computed.
_NEUTRAL = frozenset(
    {"position_ids", "cache_position", "use_cache", "return_dict", "output_hidden_states",
     "output_router_logits", "logits_to_keep"}
)  # fmt: skip


class _Piece(NamedTuple):
    """Queries [start, stop) against the keys of `keys` under a mask (see `kernels.forward`)."""

    start: int
    stop: int
    keys: Ranges
    mask: Tensor | None


class _PieceByPiece(torch.autograd.Function):
    """Attention in pieces.

    Query heads that share a key/value head are a dimension of their own, so keys and values are
    neither repeated nor, where their ranges join, copied.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        pieces: list[_Piece],
        options: Attention,
    ) -> Tensor:
        """query [h, N, d], key [j, N, d], value [j, N, e] -> [N, h, e]."""
        heads, nodes, _ = query.shape
        out = query.new_empty(nodes, heads, value.shape[-1])
        normalisers = []
        for piece in pieces:
            o, normaliser = kernels.forward(
                *_operands(piece, query, key, value), piece.mask, options
            )
            _heads_of(out[piece.start : piece.stop], key.shape[0]).copy_(o)
            normalisers.append(normaliser)
        ctx.save_for_backward(query, key, value, out, *normalisers)
        ctx.pieces, ctx.options = pieces, options
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        query, key, value, out, *normalisers = ctx.saved_tensors
        grouped, nodes, width = key.shape
        # In the memory layout of the projections, [N, heads, d]: no copy on the way back.
        grad_query = query.new_empty(query.shape[1], query.shape[0], width).transpose(0, 1)
        grad_key = key.new_zeros(nodes, grouped, width).transpose(0, 1)
        grad_value = value.new_zeros(nodes, grouped, value.shape[-1]).transpose(0, 1)
        for piece, normaliser in zip(ctx.pieces, normalisers, strict=True):
            rows = slice(piece.start, piece.stop)
            dq, dk, dv = kernels.backward(
                _heads_of(grads[0][rows], grouped), *_operands(piece, query, key, value),
                piece.mask, ctx.options, _heads_of(out[rows], grouped), normaliser,
            )  # fmt: skip
            grad_query[:, rows].unflatten(0, (grouped, -1)).copy_(dq)
            _add_ranges(grad_key, piece.keys, dk.sum(1))
            _add_ranges(grad_value, piece.keys, dv.sum(1))
        return grad_query, grad_key, grad_value, None, None


def _operands(
    piece: _Piece, query: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """[j, g, q, d], and twice [j, g, k, d] with a stride of 0 over g."""
    grouped = key.shape[0]
    q = query[:, piece.start : piece.stop].unflatten(0, (grouped, -1))
    group = q.shape[1]
    k, v = (_ranges(t, piece.keys).unsqueeze(1).expand(-1, group, -1, -1) for t in (key, value))
    return q, k, v


def _ranges(values: Tensor, ranges: Ranges) -> Tensor:
    parts = [values[:, start:stop] for start, stop in ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _add_ranges(target: Tensor, ranges: Ranges, values: Tensor) -> None:
    offset = 0
    for start, stop in ranges:
        target[:, start:stop] += values[:, offset : offset + stop - start]
        offset += stop - start


def _heads_of(rows: Tensor, grouped: int) -> Tensor:
    """[q, h, d] -> [j, g, q, d], a view."""
    return rows.transpose(0, 1).unflatten(0, (grouped, -1))


def tree_attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    prefix_tree: Tree | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """The attention function that transformers calls in every layer.

    Args:
        query: [1, h, N, d] with a flat tree, [R, h, N, d] with `TreeRows`, [R, h, n, d] with
            `PathCache` (n new nodes of each path); otherwise as for `sdpa`.
        prefix_tree: Passed as keyword to the decoder's forward by `CausalModel`.

    Raises:
        ModelError: an option that this function would have to ignore.
    """
    if prefix_tree is None:
        return _without_tree(module, query, key, value, attention_mask, options)
    if attention_mask is not None and attention_mask.dtype is not torch.bool:
        raise ModelError(
            f"{type(module).__name__} makes an attention mask of its own, which prefix trees do "
            "not have: use one of the architectures in docs/models.md"
        )
    attention = attention_of(module, query, options)
    if not torch.compiler.is_compiling():  # for every length of the list there would be code
        prefix_tree.attended.append(attention.window)
    if isinstance(prefix_tree, PathCache):
        keys, values = prefix_tree.extend(key, value)
        grouped = query.unflatten(1, (keys.shape[1], -1))
        mask = prefix_tree.within(attention.window).to(query.device)
        out = kernels.newest(grouped, keys, values, mask, attention)
        return out.flatten(1, 2).transpose(1, 2), None
    if prefix_tree.kept is not None:
        prefix_tree.kept.append((key, value))
    if isinstance(prefix_tree, TreeIntervals):
        return attend(query, key, value, prefix_tree, attention), None
    if isinstance(prefix_tree, TreeBlocks):
        blocks = prefix_tree.within(attention.window)
        masks = prefix_tree.masks(query.dtype, attention.window)
        pieces = [
            _Piece(b.start, b.stop, b.keys, mask) for b, mask in zip(blocks, masks, strict=True)
        ]
        out = _PieceByPiece.apply(
            query.squeeze(0), key.squeeze(0), value.squeeze(0), pieces, attention
        )
        return out.unsqueeze(0), None
    mask = prefix_tree.within(attention.window)
    if attention.is_plain:
        plain = {"scaling": attention.scale, "is_causal": False}
        return _by_library(module, query, key, value, mask, plain)
    return _by_rows(query, key, value, mask, attention), None


def attention_of(module: torch.nn.Module, query: Tensor, options: dict[str, Any]) -> Attention:
    """What a layer asks for, of the keywords that it passes to its attention function.

    Raises:
        ModelError: one of them is not known here and switched on.
    """
    left = {name: value for name, value in options.items() if name not in _NEUTRAL}
    scale = left.pop("scaling", None)
    window = left.pop("sliding_window", None)
    sinks = left.pop("s_aux", None)
    attention = Attention(
        scale=query.shape[-1] ** -0.5 if scale is None else float(scale),
        window=None if window is None else int(window),
        cap=left.pop("softcap", None),
        sinks=sinks,
    )
    if sinks is not None and sinks.requires_grad:
        raise ModelError(
            f"{type(module).__name__} trains its attention sinks, which are frozen here"
        )
    if left.pop("is_causal", None) is False:
        raise _unknown(module, "is_causal", False)
    if left.pop("dropout", 0.0):
        raise ModelError(
            f"{type(module).__name__} drops attention weights while it trains, which prefix trees "
            "do not: set attention_dropout to 0 in the config.json of a local copy of the model "
            "(lora.dropout stays)"
        )
    for name, value in left.items():
        if value is not None and value is not False:
            raise _unknown(module, name, value)
    return attention


def layer_windows(text_config: Any) -> list[int | None]:
    """The window of each layer by the model's config (None: a layer without)."""
    window = getattr(text_config, "sliding_window", None)
    layers = text_config.num_hidden_layers
    kinds = getattr(text_config, "layer_types", None) or ["sliding_attention"] * layers
    return [window if kind == "sliding_attention" else None for kind in kinds[:layers]]


def attention_windows(text_config: Any, longest_path: int) -> set[int | None]:
    """The windows of a model's layers that cut paths of a length (None: a layer without)."""
    windows = layer_windows(text_config)
    return {None if w is None or w >= longest_path else w for w in windows}


def _unknown(module: torch.nn.Module, name: str, value: Any) -> ModelError:
    shown = f"={value}" if isinstance(value, (bool, int, float, str)) else ""
    return ModelError(
        f"{type(module).__name__} asks its attention for `{name}{shown}`, which attention over "
        "prefix trees does not have: training would compute another model than the one that is "
        "served. Use one of the architectures in docs/models.md"
    )


def _without_tree(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    options: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    if options.get("softcap") is None and options.get("s_aux") is None:
        return _by_library(module, query, key, value, mask, options)
    attention = attention_of(module, query, options)  # whose window is in the mask already
    if mask is None:
        queries, keys = query.shape[2], key.shape[2]
        mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device)
        mask = mask.tril_().expand(query.shape[0], 1, -1, -1) if queries > 1 else mask[None, None]
    return _by_rows(query, key, value, mask, attention), None


def _by_rows(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, attention: Attention
) -> Tensor:
    """query [R, h, q, d], key and value [R, j, k, d and e], mask [R, 1, q, k] -> [R, q, h, e]."""
    queries, keys = query.shape[2], ((0, key.shape[2]),)
    rows = [
        _PieceByPiece.apply(q, k, v, [_Piece(0, queries, keys, m[0])], attention)
        for q, k, v, m in zip(query, key, value, mask.expand(len(query), -1, -1, -1), strict=True)
    ]
    return torch.stack(rows)


def _by_library(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    options: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    # Its import takes seconds, which only those who compute should wait for.
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    found: tuple[Tensor, Tensor | None] = sdpa_attention_forward(
        module, query, key, value, mask, **options
    )
    return found


def use_tree_attention(base: Any) -> None:
    """Makes every layer of a base go through `tree_attention_forward`."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(ATTENTION, tree_attention_forward)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    base.set_attn_implementation(ATTENTION)
