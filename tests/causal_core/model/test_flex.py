"""FlexAttention over a flat tree is attention over each path, and is left where it cannot be.

1. Output and gradients equal plain attention under the dense mask, in float64, with whatever a
   layer asks for: shared heads, values of another width, windows, soft caps, sinks.
2. The compiled kernel, which computes no square that the tables leave out, gives the same.
3. Where the kernel cannot be made, or computes something else, rows take its place, with a word.
"""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from causal_core.model import flex, layout
from causal_core.model.attention_kernels import Attention
from causal_core.model.flex import attend, prepare
from causal_core.model.layout import packing_for, reason_against_flex
from causal_core.trees.intervals import BUCKET, TreeIntervals
from causal_core.trees.packing import FLAT, ROWS
from tests.causal_core.trees.test_blocks import ancestors
from tests.causal_core.trees.test_intervals import random_parents
from tests.tiny import tiny_model

PARENTS = random_parents(3 * BUCKET, seed=1, fork=0.05)
CPU = torch.device("cpu")


def inputs(heads, grouped, width, value_width, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = ((heads, width), (grouped, width), (grouped, value_width), (heads, value_width))
    return [
        torch.randn(1, n, len(PARENTS), size, generator=generator, dtype=dtype)
        for n, size in shapes
    ]


def by_definition(query, key, value, attention):
    """Softmax over each node's path, the last `window` of it, and the sink."""
    allowed = ancestors(PARENTS)
    depth = allowed.sum(1)
    if attention.window is not None:
        allowed &= depth[:, None] - depth[None] < attention.window
    group = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(group, dim=1) for t in (key, value))
    scores = query @ key.transpose(-1, -2) * attention.scale
    if attention.cap is not None:
        scores = torch.tanh(scores / attention.cap) * attention.cap
    scores = scores.masked_fill(torch.from_numpy(~allowed), -torch.inf)
    if attention.sinks is not None:
        sinks = attention.sinks.view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        return (torch.cat([scores, sinks], -1).softmax(-1)[..., :-1] @ value).transpose(1, 2)
    return (scores.softmax(-1) @ value).transpose(1, 2)


def tree_for(attention):
    tree = TreeIntervals.of(PARENTS)
    prepare(tree, [None, attention.window])
    return tree


@pytest.mark.parametrize(
    ("heads", "attention"),
    [
        ((4, 2, 16, 16), Attention(0.25)),
        ((2, 2, 16, 8), Attention(0.25)),
        ((4, 2, 16, 16), Attention(0.25, window=7)),
        ((4, 2, 16, 16), Attention(0.25, cap=1.5)),
        ((4, 1, 16, 16), Attention(0.25, sinks=torch.linspace(-1, 1, 4).double())),
        ((4, 2, 16, 8), Attention(0.3, window=130, cap=2.0, sinks=torch.ones(4).double())),
    ],
    ids=["shared heads", "narrow values", "window", "cap", "sinks", "all"],
)
def test_it_is_attention_over_each_path(heads, attention):
    *values, towards = inputs(*heads)
    found, expected = [], []
    for results, by in (
        (found, lambda *qkv: attend(*qkv, tree_for(attention), attention)),
        (expected, lambda *qkv: by_definition(*qkv, attention)),
    ):
        leaves = [t.clone().requires_grad_() for t in values]
        out = by(*leaves)
        results += [out, *torch.autograd.grad(out, leaves, towards.transpose(1, 2))]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "parents", [PARENTS, list(range(-1, 4 * BUCKET - 1))], ids=["tree", "chain"]
)
def test_the_tables_are_those_that_torch_makes_of_the_mask(parents):
    tree = TreeIntervals.of(parents)
    prepare(tree, [None])
    mask, nodes = tree.masks[None], len(parents)
    expected = create_block_mask(mask.mask_mod, 1, 1, nodes, nodes, device="cpu")
    for name in ("kv", "full_kv", "q", "full_q"):
        count, index = getattr(mask, f"{name}_num_blocks"), getattr(mask, f"{name}_indices")
        assert torch.equal(count, getattr(expected, f"{name}_num_blocks")), name
        theirs = getattr(expected, f"{name}_indices")
        used = torch.arange(index.shape[-1]) < count[..., None]
        assert torch.equal(index[used], theirs[used]), name
        assert (index.dtype, index.shape) == (theirs.dtype, theirs.shape)


@pytest.mark.slow
def test_the_compiled_kernel_computes_the_squares_of_the_tables(monkeypatch):
    """On a CPU torch compiles the forward alone, and no mask with a window (its C++ is wrong)."""
    attention = Attention(0.25)
    query, key, value, _ = inputs(4, 2, 16, 16, torch.float32)
    monkeypatch.setattr(flex, "_in_plain_math", flex._fused)
    with torch.no_grad():
        out = attend(query, key, value, tree_for(attention), attention)
        expected = by_definition(query, key, value, attention)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    # Tables without a single square: nothing is computed, so the tables are what is computed.
    tree = tree_for(attention)
    mask = tree.masks[None]
    mask.kv_num_blocks.zero_()
    mask.full_kv_num_blocks.zero_()
    with torch.no_grad():
        assert not torch.allclose(attend(query, key, value, tree, attention), expected)


def test_where_there_is_no_kernel_rows_take_its_place_with_a_word(caplog, monkeypatch):
    model = tiny_model()
    assert packing_for(model, CPU) == FLAT
    with caplog.at_level(logging.WARNING):
        assert packing_for(model, torch.device("cuda")) is ROWS
    assert "padded rows instead of flat trees" in caplog.text and "narrower than 16" in caplog.text
    if not torch.cuda.is_available():
        assert "CUDA" in reason_against_flex(4, 2, 16, 16, torch.float32, torch.device("cuda"))


def test_the_trial_compares_the_kernel_with_plain_attention(monkeypatch):
    reason_against_flex.cache_clear()
    shape = (4, 2, 16, 24, torch.float32, CPU)
    assert reason_against_flex(*shape) is None
    for wrong in (
        lambda q, k, v, tree, attention: attend(q, k, v, tree, Attention(attention.scale * 1.1)),
        lambda q, k, v, tree, attention: attend(q, k, v, tree, attention) * np.nan,
    ):
        reason_against_flex.cache_clear()
        monkeypatch.setattr(layout, "attend", wrong)
        assert "from plain attention's" in reason_against_flex(*shape)
    reason_against_flex.cache_clear()
