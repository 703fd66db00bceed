"""The fused LoRA forward is PEFT's, and its dropout is dropout.

1. Values and every gradient equal PEFT's own forward, on plain and NF4 bases, with and without a
   bias; in float64 to rounding.
2. With dropout: elements are kept with probability 1 - p, the expectation is that without dropout,
   and gradient checkpointing, which draws again, gives the same gradient.
3. Whatever is not one plain active adapter goes through PEFT.
"""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from causal_core.loss.objective import needs_of
from causal_core.model.lora import keep_mask, use_fused_lora
from causal_core.trees.packing import FLAT, cut_micro_batches
from tests.causal_core.step.test_exactness import LOSSES
from tests.tiny import gradients, micro_batch_gradient, random_triplets, relative_error, tiny_model


class Stack(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.first = nn.Linear(64, 128, bias=bias)
        self.second = nn.Linear(128, 64, bias=bias)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def lora_stack(bias: bool = False, dropout: float = 0.0, **options):
    torch.manual_seed(0)
    config = LoraConfig(
        r=4, lora_alpha=8, lora_dropout=dropout, target_modules=["first", "second"], **options
    )
    model = get_peft_model(Stack(bias), config).double()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return model


def run(model, x):
    x = x.clone().requires_grad_()
    model.zero_grad()
    y = model(x)
    y.square().sum().backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return y.detach(), {**grads, "input": x.grad}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(7, 64), (2, 5, 64)])
def test_values_and_gradients_are_peft_s(bias, shape):
    model, x = lora_stack(bias), torch.randn(shape, dtype=torch.float64)
    expected, expected_grads = run(model, x)
    assert use_fused_lora(model) == 2
    found, grads = run(model, x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert grads.keys() == expected_grads.keys()
    for name, gradient in expected_grads.items():
        torch.testing.assert_close(grads[name], gradient, rtol=1e-10, atol=1e-10)


def test_a_quantised_base_gives_peft_s_values_and_gradients():
    bnb = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    stack = nn.Sequential()
    stack.first = bnb.nn.Linear4bit(64, 128, bias=False, quant_type="nf4")
    model = get_peft_model(stack.to("cpu"), LoraConfig(r=4, target_modules=["first"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    x = torch.randn(6, 64)
    expected, expected_grads = run(model, x)
    assert use_fused_lora(model) == 1
    found, grads = run(model, x)
    torch.testing.assert_close(found, expected)
    for name, gradient in expected_grads.items():
        torch.testing.assert_close(grads[name], gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dropout", [0.05, 0.5])
def test_elements_are_kept_with_the_probability_asked_for(dropout):
    torch.manual_seed(0)
    like = torch.empty(1000, 999)
    kept = keep_mask(like, dropout).double()
    error = (dropout * (1 - dropout) / like.numel()) ** 0.5
    assert abs(float(kept.mean()) - (1 - dropout)) < 5 * error
    # Neighbours share a 64-bit word but not their fate.
    correlation = torch.corrcoef(torch.stack([kept[:, :-1].flatten(), kept[:, 1:].flatten()]))
    assert abs(float(correlation[0, 1])) < 5 / like.numel() ** 0.5


def test_dropout_is_unbiased_and_off_in_evaluation():
    model = lora_stack(dropout=0.3)
    use_fused_lora(model)
    first, x = model.base_model.model.first, torch.randn(3, 64, dtype=torch.float64)
    model.eval()
    expected = first(x)
    torch.testing.assert_close(expected, first(x), rtol=0, atol=0)
    model.train()
    torch.manual_seed(1)
    with torch.no_grad():
        draws = torch.stack([first(x) for _ in range(4000)])
    error = draws.std(0) / 4000**0.5
    assert bool(((draws.mean(0) - expected).abs() < 6 * error + 1e-9).all())


def test_a_recomputed_forward_draws_the_same_mask():
    triplets, loss = random_triplets(3, seed=4), LOSSES["all"]
    found = []
    for checkpointing in (False, True):
        model = tiny_model(dropout=0.2, gradient_checkpointing=checkpointing).double()
        model.train()
        torch.manual_seed(5)
        for micro in cut_micro_batches(triplets, needs_of(loss), 400, FLAT):
            micro_batch_gradient(model, micro.batch, loss, triplets)
        found.append(gradients(model))
    assert relative_error(found[1], found[0]) < 1e-10


def test_what_is_not_one_plain_adapter_goes_through_peft():
    x = torch.randn(3, 64, dtype=torch.float64)
    dora = lora_stack(use_dora=True)
    expected = dora(x)
    use_fused_lora(dora)
    torch.testing.assert_close(dora(x), expected, rtol=0, atol=0)
    model = lora_stack()
    base = model.get_base_model()
    use_fused_lora(model)
    with model.disable_adapter():
        torch.testing.assert_close(model(x), model.get_base_model()(x), rtol=0, atol=0)
        plain = base.second.base_layer(torch.tanh(base.first.base_layer(x)))
        torch.testing.assert_close(model(x), plain, rtol=0, atol=0)
