"""Float32 matrix products on CPU by the faster of the two libraries that torch carries, and
products with frozen weights in bfloat16 where a run asks for them.

`torch.mm` calls MKL on x86. It does not know every processor equally well: on an AMD EPYC (Zen 4)
oneDNN, which torch has for convolutions and half types, multiplies float32 matrices 1.3 times as
fast. Which one is faster is measured (`device_costs.py`); other types and devices always go
torch's own way.

oneDNN compiles a kernel for every shape it meets and keeps 1,024 of them with their buffers, at two
megabytes each; with micro-batches of ever new lengths that is gigabytes. Here it keeps 32, enough
for the shapes of one micro-batch; making them anew costs a millisecond a shape.

Processors with bfloat16 units (AVX512-BF16, AMX) multiply bfloat16 two to over ten times as fast.
Under `train.matmul` the products of adapted layers with their frozen weights are made of operands
and results that are rounded to bfloat16, with sums in float32: each errs by at most three unit
roundoffs (2^-8) of the sum of its terms' sizes, forward and backward. Everything else stays as it
is: adapter, norms, attention, residuals, logits and losses. Frozen weights are rounded anew for
each product, which costs a pass over them and keeps no second copy. That pass is nothing beside
hundreds of tokens, but more than the product itself beside a few: who generates answers a token at
a time may keep the rounded weights (`copies`), the same numbers.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import MethodType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from causal_core.config_sections import FLOAT32, Products

Library = Literal["torch", "onednn"]
LIBRARIES: tuple[Library, ...] = ("torch", "onednn")

# Read by the libraries at their first product; what the user set stays.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
os.environ.setdefault("LRU_CACHE_CAPACITY", "1")  # torch's own level above it

ADVANTAGE = 1.1  # by which another way of multiplying must be faster to be chosen
_SIDE, _ROWS, _REPEATS = 1024, 512, 9  # of the product that is timed: 7 ms at 150 GFLOP/s
_MOST_SECONDS = 0.5  # after which no further repeat begins

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]

_library: Library = "torch"
_bfloat16 = False
_copies: WeakTensorKeyDictionary | None = None  # of frozen weights, rounded; None: none are kept


def use(library: Library, bfloat16: bool = False, copies: bool = False) -> None:
    """Sets how this process multiplies float32 matrices on CPU.

    Args:
        library: Of float32 products.
        bfloat16: Whether products with frozen weights are rounded to bfloat16.
        copies: Keep frozen weights as they are rounded, half of their float32 size in addition, as
            long as they live or until the next call. They are not to change meanwhile.

    Raises:
        ValueError: this build of torch has no such library.
    """
    global _library, _bfloat16, _copies
    if library not in LIBRARIES or (library == "onednn" and not has_onednn()):
        raise ValueError(f"no matrix products by {library!r} in this build of torch")
    _library, _bfloat16 = library, bfloat16
    _copies = WeakTensorKeyDictionary() if bfloat16 and copies else None


def in_use() -> Library:
    """The library that `use` set last, torch's own before."""
    return _library


def in_bfloat16() -> bool:
    """Whether products with frozen weights are rounded to bfloat16, as `use` said last."""
    return _bfloat16


def products() -> Products:
    """In which type a float32 model is multiplied with its frozen weights now."""
    return "bfloat16" if _bfloat16 else FLOAT32


@contextmanager
def using(library: Library, bfloat16: bool = False) -> Iterator[None]:
    """`use` while the context lasts."""
    before = _library, _bfloat16, _copies is not None
    use(library, bfloat16)
    try:
        yield
    finally:
        use(*before)


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


def frozen_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`linear` with a weight that is not trained: in bfloat16 where `use` said so.

    On the meta device as well, where the memory of a step on CPU is traced.
    """
    if _bfloat16 and x.dtype is torch.float32 and x.device.type in ("cpu", "meta"):
        return _rounded(x, weight, bias)
    return linear(x, weight, bias)


def _rounded(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = F.linear(x.bfloat16(), _weight_in_bfloat16(weight)).float()
    return y if bias is None else y.add_(bias)


def _weight_in_bfloat16(weight: Tensor) -> Tensor:
    if _copies is None or not weight.is_leaf:
        return weight.bfloat16()
    copy: Tensor | None = _copies.get(weight)
    if copy is None:
        copy = _copies[weight] = weight.detach().bfloat16()
    return copy


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


def _decoder_forward(self: Any, x: Tensor) -> Tensor:
    if not _bfloat16:
        return _frozen_forward(self, x)
    return frozen_linear(x.flatten(0, -2), self.weight, self.bias).unflatten(0, x.shape[:-1])


def round_layers(decoder: nn.Module) -> int:
    """Lets the frozen linear layers of a decoder multiply as `use` says, adapted or not, with the
    adapter on or off: models whose adapters sit elsewhere then compute in the same type.

    Returns:
        The bytes of all `copies` of their weights.
    """
    count = 0
    for module in decoder.modules():
        if type(module) is nn.Linear and not module.weight.requires_grad:
            module.forward = MethodType(_decoder_forward, module)  # type: ignore[method-assign]
            count += module.weight.numel()
    return count * torch.bfloat16.itemsize


def fastest_library() -> Library:
    """Times both on a product of this process's threads; torch's own unless oneDNN is ahead."""
    if not has_onednn():
        return "torch"
    torch_s, onednn_s = _seconds((F.linear, _onednn))
    return "onednn" if torch_s > ADVANTAGE * onednn_s else "torch"


def bfloat16_speed(library: Library) -> float:
    """How many times as fast as float32 ones, by this library, products in bfloat16 are here.

    With all roundings. Processors without units for bfloat16 need up to a hundred times as long.
    """
    with using(library):
        float32_s, bfloat16_s = _seconds((linear, _rounded))
    return float32_s / bfloat16_s


def _seconds(products: tuple[Product, Product]) -> list[float]:
    """Processor time of one product each, the least of several.

    Of this process's threads together: by the clock, what else the machine does would decide.
    """
    x, weight = torch.ones(_ROWS, _SIDE), torch.ones(_SIDE, _SIDE)
    best = [math.inf] * len(products)
    end = math.inf
    for repeat in range(_REPEATS + 1):
        for index, product in enumerate(products):
            begin = time.process_time()
            product(x, weight, None)
            now = time.process_time()
            if repeat:  # the first makes the kernels
                best[index] = min(best[index], now - begin)
        if repeat == 0:
            end = time.process_time() + _MOST_SECONDS
        elif time.process_time() > end:
            break
    return best
