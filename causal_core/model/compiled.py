"""Decoder layers compiled by torch, each by itself, for training.

A layer launches some hundred small kernels between its matrix products; compiled, they become a
few. Layers are alike, so that the first one's code serves them all, for micro-batches of any
length. In evaluation mode the layers stay as they are: decoding looks at values that no compiler
knows.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from causal_core.errors import ModelError
from causal_core.model.causal_model import CausalModel


def compile_layers(model: CausalModel, backend: str = "inductor", fullgraph: bool = False) -> None:
    """From now on the layers run compiled while the model trains; their code is made when it is
    first needed.

    Args:
        fullgraph: An error where a layer cannot be compiled in one piece; otherwise such pieces
            run as they are.

    Raises:
        ModelError: the architecture keeps no list of layers.
    """
    decoder = model.peft_model.get_base_model().get_decoder()
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ModelError(
            f"the layers of {type(decoder).__name__} cannot be compiled, because it does not keep "
            "them in a list `layers`: set train.compile=off"
        )
    compiled: list[tuple[Any, Any]] = []
    for layer in layers:
        layer.compile(backend=backend, fullgraph=fullgraph, dynamic=True)
        compiled.append((layer, layer._compiled_call_impl))
    model.compiled_layers = compiled
    model.train(model.training)


def leave_layers(model: CausalModel) -> None:
    """Takes `compile_layers` back."""
    was_training = model.training
    model.eval()
    model.compiled_layers = []
    model.train(was_training)
