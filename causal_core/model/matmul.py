"""Float32 matrix products on CPU by the faster of the two libraries that torch carries.

`torch.mm` calls MKL on x86. It does not know every processor equally well: on an AMD EPYC (Zen 4)
oneDNN, which torch has for convolutions and half types, multiplies float32 matrices 1.3 times as
fast. Which one is faster is measured (`device_costs.py`); other types and devices always go
torch's own way.

oneDNN compiles a kernel for every shape it meets and keeps 1,024 of them with their buffers, at two
megabytes each; with micro-batches of ever new lengths that is gigabytes. Here it keeps 32, enough
for the shapes of one micro-batch; making them anew costs a millisecond a shape.
"""

from __future__ import annotations

import os
import time
from functools import cache
from types import MethodType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Library = Literal["torch", "onednn"]
LIBRARIES: tuple[Library, ...] = ("torch", "onednn")

# Read by the libraries at their first product; what the user set stays.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
os.environ.setdefault("LRU_CACHE_CAPACITY", "1")  # torch's own level above it

_ADVANTAGE = 1.1  # by which oneDNN must be faster to be chosen
_SIDE, _ROWS, _REPEATS = 1024, 512, 9  # of the product that is timed: 7 ms at 150 GFLOP/s

_library: Library = "torch"


def use(library: Library) -> None:
    """Sets the library of this process's float32 products on CPU.

    Raises:
        ValueError: this build of torch has no such library.
    """
    global _library
    if library not in LIBRARIES or (library == "onednn" and not has_onednn()):
        raise ValueError(f"no matrix products by {library!r} in this build of torch")
    _library = library


def in_use() -> Library:
    """The library that `use` set last, torch's own before."""
    return _library


@cache
def has_onednn() -> bool:
    """Whether this build of torch multiplies float32 matrices by oneDNN, in the way used here."""
    if not torch.backends.mkldnn.is_available():
        return False
    x = torch.linspace(-1.0, 1.0, 12, device="cpu").view(3, 4)
    try:  # an operation that torch's compiler uses, without a promise to stay as it is
        return torch.allclose(_onednn(x, x, None), F.linear(x, x), atol=1e-5)
    except (AttributeError, RuntimeError, TypeError):
        return False


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b without a gradient of its own; either matrix may be a transposed view.

    Args:
        x: [N, in].
        weight: [out, in].
        bias: [out].
    """
    if (
        _library == "onednn"
        and x.dtype is torch.float32
        and x.device.type == "cpu"
        and _is_dense(x)
        and _is_dense(weight)
    ):
        return _onednn(x, weight, bias)
    return F.linear(x, weight, bias)


def _is_dense(matrix: Tensor) -> bool:
    # oneDNN multiplies a part of a wider matrix's columns by a loop, a hundred times slower.
    return matrix.is_contiguous() or matrix.t().is_contiguous()


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(weight)
        return linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        return linear(grads[0], weight.t()), None, None


def _frozen_forward(self: Any, x: Tensor) -> Tensor:
    # DeepSpeed's ZeRO-3 gathers a weight around the module's own forward and backward.
    if self.weight.requires_grad or hasattr(self.weight, "ds_id"):
        result: Tensor = type(self).forward(self, x)
        return result
    y: Tensor = _FrozenLinear.apply(x.flatten(0, -2), self.weight, self.bias)
    return y.unflatten(0, x.shape[:-1])


def use_frozen_linear(module: nn.Module) -> None:
    """Gives a plain linear module whose parameters are frozen these products."""
    if type(module) is nn.Linear:
        module.forward = MethodType(_frozen_forward, module)  # type: ignore[method-assign]


def fastest_library() -> Library:
    """Times both on a product of this process's threads; torch's own unless oneDNN is ahead."""
    if not has_onednn():
        return "torch"
    x, weight = torch.ones(_ROWS, _SIDE), torch.ones(_SIDE, _SIDE)
    seconds = {"torch": float("inf"), "onednn": float("inf")}
    for repeat in range(_REPEATS + 1):
        for name, product in (("torch", F.linear), ("onednn", _onednn)):
            begin = time.perf_counter()
            product(x, weight, None)
            if repeat:  # the first makes the kernels
                seconds[name] = min(seconds[name], time.perf_counter() - begin)
    return "onednn" if seconds["torch"] > _ADVANTAGE * seconds["onednn"] else "torch"
