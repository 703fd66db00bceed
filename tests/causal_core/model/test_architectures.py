"""Every architecture is exact or refused by name (invariant I1).

1. Loss and every gradient over packed trees equal those of separate forwards through the model's
   own code, in all layouts, with prompts longer than the windows. In float64 to 1e-5, which is
   some hundred roundings to float32: the library rounds norms and attention weights to it inside a
   float64 model. A window that is off by one node is off by more than 1e-3.
2. What cannot be exact is refused, with a name.
3. Without a tree, the same model gives what its own attention gives: generation in padded batches.
4. The memory planner follows.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from causal_core.config import LoraSection, LossSection
from causal_core.config_file import parse_config
from causal_core.errors import ModelError
from causal_core.loss.objective import needs_of
from causal_core.memory.shapes import assumed_shape
from causal_core.memory.trace import trace_step
from causal_core.model.causal_model import build_model
from causal_core.trees.packing import FLAT, INTERVALS, ROWS, cut_micro_batches, preferred_packing
from tests.causal_core.model.architectures import ARCHITECTURES, WINDOW, Architecture, page
from tests.tiny import (
    VOCABULARY,
    gradients,
    micro_batch_gradient,
    plain_loss,
    random_triplets,
    relative_error,
)

LOSS = LossSection(lambda_causal=0.5, lambda_spurious=0.5, lambda_robust=0.7, lambda_invariance=0.3)
TOLERANCE = 1e-5
EXACT = [a for a in ARCHITECTURES if a.refused is None]
BY_KIND = {a.kind: a for a in ARCHITECTURES}
REFUSED = [a for a in ARCHITECTURES if a.refused is not None]
ALL_LAYOUTS = pytest.mark.parametrize(
    "packing", [ROWS, FLAT, INTERVALS], ids=["rows", "flat", "intervals"]
)


def model_of(architecture: Architecture):
    """With the adapter away from its zero initialisation."""
    lora = LoraSection(rank=4, alpha=8, dropout=0.0, target_modules=architecture.modules)
    model = build_model(architecture.base(), lora, seed=0).double().eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.trainable_parameters().values():
        with torch.no_grad():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.1 * noise)
    return model


@contextmanager
def own_attention(model):
    """The library's reference attention, which each architecture brings itself."""
    base = model.peft_model.get_base_model()
    ours = base.config._attn_implementation
    base.set_attn_implementation("eager")
    try:
        yield
    finally:
        base.set_attn_implementation(ours)


@cache
def reference_of(kind):
    """What every layout of an architecture must equal over the triplets of these tests."""
    return by_separate_forwards(model_of(BY_KIND[kind]), random_triplets(6, seed=1))


def by_separate_forwards(model, triplets):
    """Loss and gradients through the model's own attention, with masks of its own."""
    with own_attention(model):
        value, _ = plain_loss(model, triplets, LOSS)
        model.zero_grad(set_to_none=True)
        value.backward()
        return float(value.detach()), gradients(model)


def by_trees(model, triplets, packing):
    model.zero_grad(set_to_none=True)
    value = sum(
        micro_batch_gradient(model, micro.batch, LOSS, triplets)
        for micro in cut_micro_batches(triplets, needs_of(LOSS), 120, packing)
    )
    return value, gradients(model)


@ALL_LAYOUTS
@pytest.mark.parametrize("architecture", EXACT, ids=lambda a: a.kind)
def test_trees_equal_separate_forwards(architecture, packing):
    model, triplets = model_of(architecture), random_triplets(6, seed=1)
    longest = max(len(t.system + t.only.prompt) for t in triplets)
    assert longest > 2 * WINDOW
    expected, reference = reference_of(architecture.kind)
    found, trees = by_trees(model, triplets, packing)
    assert found == pytest.approx(expected, rel=TOLERANCE)
    assert relative_error(trees, reference) < TOLERANCE


@ALL_LAYOUTS
@pytest.mark.parametrize(
    "architecture", [a for a in EXACT if a.kind in ("mistral", "gemma2")], ids=lambda a: a.kind
)
def test_a_window_of_one_node_more_is_noticed(architecture, packing, monkeypatch):
    from causal_core.model import attention

    def one_more(module, query, options, of=attention.attention_of):
        found = of(module, query, options)
        return replace(found, window=found.window and found.window + 1)

    _, reference = reference_of(architecture.kind)
    model, triplets = model_of(architecture), random_triplets(6, seed=1)
    monkeypatch.setattr(attention, "attention_of", one_more)
    _, trees = by_trees(model, triplets, packing)
    assert relative_error(trees, reference) > 1e-3


@ALL_LAYOUTS
@pytest.mark.parametrize("architecture", REFUSED, ids=lambda a: a.kind)
def test_what_cannot_be_exact_is_refused_by_name(architecture, packing):
    with pytest.raises(ModelError, match=architecture.refused):
        by_trees(model_of(architecture), random_triplets(2, seed=1), packing)


@pytest.mark.parametrize("architecture", REFUSED, ids=lambda a: a.kind)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_plan_refuses_what_training_will_refuse(architecture, device):
    config = parse_config({"lora": {"target_modules": architecture.modules}})
    shape = assumed_shape(config, 256, packing=preferred_packing(torch.device(device)))
    with pytest.raises(ModelError, match=architecture.refused):
        trace_step(config, architecture.config(), shape, device, layers=2)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("ctrl", "a list `layers`"), ("jetmoe", "look at values"), ("mamba", "linear_attention")],
)
def test_a_plan_that_cannot_be_made_says_why(kind, reason):
    modules = {"ctrl": ["dense"], "jetmoe": ["kv_proj"], "mamba": ["in_proj"]}[kind]
    config = parse_config({"lora": {"target_modules": modules}})
    options = {"num_local_experts": 4, "kv_channels": 8, "n_layer": 3, "n_embd": 32, "n_head": 4}
    described = Architecture("", kind, "", options).config()
    with pytest.raises(ModelError, match=reason):
        trace_step(config, described, assumed_shape(config, 256, packing=FLAT), "cpu", layers=2)


@ALL_LAYOUTS
def test_a_window_that_only_the_mask_knows_matters_to_longer_rows_alone(packing):
    phimoe = next(a for a in ARCHITECTURES if a.kind == "phimoe")
    triplets = random_triplets(6, seed=1)
    model = model_of(replace(phimoe, options={**phimoe.options, "sliding_window": 500}))
    expected, reference = by_separate_forwards(model, triplets)
    found, trees = by_trees(model, triplets, packing)
    assert found == pytest.approx(expected, rel=TOLERANCE)
    assert relative_error(trees, reference) < TOLERANCE


@pytest.mark.parametrize("architecture", EXACT, ids=lambda a: a.kind)
def test_generation_is_that_of_the_model_s_own_attention(architecture):
    model = model_of(architecture).float()  # the library's mask is no number in its float64 softmax
    ids = torch.randint(3, VOCABULARY, (2, 14), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :6] = 0  # a shorter prompt, padded on the left

    def generated():
        return model.peft_model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=6, do_sample=False,
            output_logits=True, return_dict_in_generate=True, pad_token_id=0, eos_token_id=None,
        )  # fmt: skip

    found = generated()
    with own_attention(model):
        expected = generated()
    assert torch.equal(found.sequences, expected.sequences)
    for a, b in zip(found.logits, expected.logits, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def planned():
    """Each architecture, on one kind of device at a time; those that have windows, caps, sinks or
    experts in common stand beside each other and are planned on both. All pairs are slow tests."""
    for number, architecture in enumerate(EXACT):
        for place, device in enumerate(("cpu", "cuda")):
            marks = pytest.mark.slow if (number + place) % 2 else ()
            name = f"{device}-{architecture.kind}"
            yield pytest.param(architecture, device, id=name, marks=marks)


@pytest.mark.parametrize(("architecture", "device"), planned())
def test_memory_can_be_planned(architecture, device):
    config = parse_config(
        {"lora": {"target_modules": architecture.modules}, "data": {"max_length": 64}}
    )

    def peak(tokens: int) -> int:
        shape = assumed_shape(config, tokens, packing=preferred_packing(torch.device(device)))
        trace = trace_step(config, architecture.config(), shape, device, layers=2)
        return max(p.total for p in trace.peaks.values())

    assert peak(256) < peak(512)


def test_the_table_in_the_documents_is_this_one():
    document = Path(__file__).parents[3] / "docs" / "models.md"
    assert document.read_text(encoding="utf-8") == page()
