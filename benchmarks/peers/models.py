"""One base and one adapter for all: ours, and the same weights under PEFT's own forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from causal_core.config import LoraSection, ModelSection
from causal_core.model.causal_model import CausalModel, build_model
from causal_core.model.targets import target_modules
from causal_core.pretrained.loading import load_base

LORA = LoraSection(dropout=0.0)


def our_model(base: Any | None = None, lora: LoraSection = LORA) -> CausalModel:
    """Ours, with an adapter that is not at its initial zero, which would hide errors in A."""
    model = build_model(base or demo_base(), lora, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.trainable_parameters().items():
            if "lora_B" in name:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(0.01 * noise)
    return model.train()


def demo_base() -> Any:
    """A fresh copy of the demo model's base with the attention that torch has."""
    base = load_base(ModelSection(), torch.device("cpu"))
    base.set_attn_implementation("sdpa")
    return base


def lora_config(base: Any, lora: LoraSection = LORA) -> Any:
    """PEFT's configuration of the same adapter."""
    from peft import LoraConfig

    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=target_modules(base, lora),
        task_type="CAUSAL_LM",
    )


def adapter(model: nn.Module) -> dict[str, nn.Parameter]:
    """Adapter parameters by the name that they have in PEFT's model."""
    return {
        name.removeprefix("peft_model."): parameter
        for name, parameter in model.named_parameters()
        if "lora_" in name
    }


def copy_adapter(source: nn.Module, target: nn.Module) -> None:
    """Gives one model the adapter of another (`ValueError` where they differ in shape)."""
    ours, theirs = adapter(source), adapter(target)
    if {n: p.shape for n, p in ours.items()} != {n: p.shape for n, p in theirs.items()}:
        raise ValueError("the two models have not the same adapter")
    with torch.no_grad():
        for name, parameter in theirs.items():
            parameter.copy_(ours[name])


def gradient(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the adapter's gradients."""
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.detach().clone()
        for name, p in adapter(model).items()
    }


def difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """||found - expected|| / ||expected|| over all parameters together."""
    a, b = (
        torch.cat([gradients[name].double().flatten() for name in sorted(expected)])
        for gradients in (found, expected)
    )
    return float((a - b).norm() / b.norm())
