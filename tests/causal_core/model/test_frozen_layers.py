"""Fused norms and gates equal the library's, in values and gradients, or are not used.

1. A Llama gives the same hidden states and input gradients with and without them.
2. A norm that computes something else (a weight offset, a trained weight) keeps its own forward.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from causal_core.model.frozen_layers import use_fused_layers
from tests.tiny import norms_in_float64, tiny_base


def states_and_gradient(base, embedded):
    embedded = embedded.clone().requires_grad_()
    hidden = base.get_decoder()(inputs_embeds=embedded, use_cache=False).last_hidden_state
    hidden.sin().sum().backward()
    return hidden.detach(), embedded.grad


def test_a_llama_computes_the_same(monkeypatch):
    norms_in_float64(monkeypatch)
    base = tiny_base().double().eval()
    for name, parameter in base.named_parameters():
        if "norm" in name:
            nn.init.uniform_(parameter, 0.5, 1.5)
    embedded = torch.randn(2, 7, 32, dtype=torch.float64)
    expected = states_and_gradient(base, embedded)
    assert use_fused_layers(base) == 2 * 2 + 1 + 2  # two norms a layer, the last one, two MLPs
    assert use_fused_layers(base) == 0
    found = states_and_gradient(base, embedded)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_half_types_take_the_library_s_path():
    base = tiny_base().to(torch.bfloat16)
    embedded = torch.randn(1, 5, 32, dtype=torch.bfloat16)
    norm = base.get_decoder().norm
    expected = norm(embedded)
    use_fused_layers(base)
    torch.testing.assert_close(norm(embedded), expected, rtol=0, atol=0)


class OffsetRMSNorm(LlamaRMSNorm):
    def forward(self, hidden_states):
        return super().forward(hidden_states) + hidden_states


def test_other_modules_are_left_alone():
    other = OffsetRMSNorm(8).requires_grad_(False)
    trained = LlamaRMSNorm(8)
    gelu = tiny_base().get_decoder().layers[0].mlp
    gelu.act_fn = nn.GELU()
    assert use_fused_layers(nn.ModuleList([other, trained])) == 0
    assert use_fused_layers(gelu) == 0
    assert "forward" not in other.__dict__
