"""The weights of an export: the adapter in PEFT's layout, or base and adapter in one.

Nothing of the training goes with them: no optimizer state, no trainer state, no pickle.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from causal_core.checkpoints.checkpoint import load_weights, save_adapter
from causal_core.config import Config
from causal_core.model.causal_model import CausalModel, build_model
from causal_core.pretrained.loading import load_base

DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}


def write_adapter(directory: Path, model: CausalModel, dtype: str) -> None:
    """The adapter alone."""
    weights = {
        name: parameter.detach().to("cpu", DTYPES[dtype]).contiguous()
        for name, parameter in model.trainable_parameters().items()
    }
    save_adapter(directory, model, weights)


def write_merged(
    directory: Path, config: Config, checkpoint: Path, dtype: str, device: torch.device
) -> None:
    """Base and adapter as one model in weights of `dtype`, whatever the base was trained in."""
    unquantised = config.model.model_copy(
        update={"quantization": "none", "dtype": "bfloat16" if dtype == "bfloat16" else "float32"}
    )
    model = build_model(load_base(unquantised, device), config.lora, config.run.seed)
    load_weights(checkpoint, model)
    merged = _merged(model).to(DTYPES[dtype])
    merged.config.dtype = DTYPES[dtype]
    merged.save_pretrained(str(directory))


@torch.no_grad()
def _merged(model: CausalModel) -> Any:
    """The base with the adapter added to its weights: in float32, and rounded once."""
    from peft.tuners.lora import LoraLayer

    for module in model.peft_model.modules():
        if isinstance(module, LoraLayer):
            weight = module.get_base_layer().weight
            delta = module.get_delta_weight("default").float()
            weight.copy_((weight.float() + delta).to(weight.dtype))
    return model.peft_model.unload()
