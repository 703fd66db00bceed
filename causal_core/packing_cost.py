"""The cost that decides how trees are laid out, as it is on this device.

On CPU the price of one more attention block in units of scores; on a GPU the price of a score in
units of a node's linear layers. Both are rounded to powers of two.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from causal_core.model import CausalModel
from causal_core.tree_attention import tree_attention_forward
from causal_core.tree_blocks import DEFAULT_CALL_COST, Block, TreeBlocks
from causal_core.triplet_trees import Packing, RowCost

_REPEATS = 15
_SMALL, _LARGE = 48, 448  # nodes of the two blocks (or rows) that are timed
_CALL_COSTS = (2**10, 2**18)


def packing_from(cost: float, device: torch.device) -> Packing:
    """The layout for a cost that was measured before."""
    if device.type == "cpu":
        return Packing(flat=True, call_cost=cost)
    return Packing(flat=False, row_cost=RowCost(quadratic=cost))


def measured_call_cost(heads: int, grouped: int, width: int) -> float:
    """Scores that could be computed in the time that one more block takes, forward and backward.

    From the times of a small and a large masked block, as t = call + score * nodes^2.
    """
    small, large = (
        _seconds(_block_step(heads, grouped, width, n), lambda: None) for n in (_SMALL, _LARGE)
    )
    score = (large - small) / (_LARGE**2 - _SMALL**2)
    if score <= 0:
        return DEFAULT_CALL_COST
    return _power_of_two(max(small / score - _SMALL**2, 1.0), *_CALL_COSTS)


def measured_score_cost(model: CausalModel, device: torch.device) -> float:
    """Time of one score over the time of one node's linear layers, of one decoder layer.

    The default where there is no such layer to time: another architecture, or weights that are
    not on the device (ZeRO-3 takes them from the host, shard by shard).
    """
    heads, _, width = attention_shape(model)
    layers = getattr(model.peft_model.get_base_model().get_decoder(), "layers", None)
    layer = layers[0] if layers else None
    mlp = getattr(layer, "mlp", None)
    weight = next((p for p in mlp.parameters() if p.is_floating_point()), None) if mlp else None
    if layer is None or weight is None or weight.device.type != device.type:
        return RowCost().quadratic
    nodes, dtype = 4 * _LARGE, weight.dtype
    hidden = model.projection.input.in_features
    x = torch.randn(1, nodes, hidden, device=device, dtype=dtype, requires_grad=True)
    q = torch.randn(1, heads, nodes, width, device=device, dtype=dtype, requires_grad=True)
    mask = torch.ones(1, 1, nodes, nodes, device=device, dtype=torch.bool).tril()

    def linear() -> None:
        torch.autograd.grad(layer.mlp(x).sum(), x)

    def attend() -> None:
        out = torch.nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=mask)
        torch.autograd.grad(out.sum(), q)

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    share = sum(p.numel() for p in layer.parameters()) / sum(
        p.numel() for p in layer.mlp.parameters()
    )
    per_node = _seconds(linear, wait) * share / nodes
    per_score = _seconds(attend, wait) / nodes**2
    return _power_of_two(per_score / per_node, 2.0**-20, 1.0)


def _block_step(heads: int, grouped: int, width: int, nodes: int) -> Callable[[], None]:
    def values(count: int) -> Tensor:
        return torch.randn(1, count, nodes, width, requires_grad=True)

    query, key, value = values(heads), values(grouped), values(grouped)
    allowed = np.tril(np.ones((nodes, nodes), dtype=bool))
    tree = TreeBlocks((Block(0, nodes, ((0, nodes),), allowed),))

    def step() -> None:
        out, _ = tree_attention_forward(
            torch.nn.Module(), query, key, value, None, tree, scaling=width**-0.5
        )
        torch.autograd.grad(out.sum(), (query, key, value))

    return step


def _seconds(step: Callable[[], None], wait: Callable[[], None]) -> float:
    for _ in range(3):
        step()
    times = []
    for _ in range(_REPEATS):
        wait()
        begin = time.perf_counter()
        step()
        wait()
        times.append(time.perf_counter() - begin)
    return min(times)  # what else the machine does only adds


def _power_of_two(value: float, least: float, most: float) -> float:
    return float(min(most, max(least, 2.0 ** round(math.log2(value)))))


def attention_shape(model: CausalModel) -> tuple[int, int, int]:
    """Query heads, key/value heads and the width of a head."""
    config: Any = model.peft_model.get_base_model().config.get_text_config()
    heads = int(config.num_attention_heads)
    grouped = int(getattr(config, "num_key_value_heads", None) or heads)
    width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    return heads, grouped, width
