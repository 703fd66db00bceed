"""What is measured once on a device, remembered for it, and kept by every run that began with it.

Each choice made from it changes rounding in the last digits and nothing else, so it should not
follow the noise of a clock, and a resumed run is to repeat every rounding.
"""

from __future__ import annotations

import json
import logging
import math
import platform
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from causal_core.config_sections import Matmul
from causal_core.errors import UserError
from causal_core.files import write_whole
from causal_core.model import matmul
from causal_core.model.attention import tree_attention_forward
from causal_core.model.causal_model import CausalModel
from causal_core.model.matmul import (
    ADVANTAGE,
    LIBRARIES,
    Library,
    bfloat16_speed,
    fastest_library,
)
from causal_core.trees.blocks import DEFAULT_CALL_COST, Block, TreeBlocks
from causal_core.trees.packing import RowCost

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measurements:
    """Of one device and one shape of attention heads."""

    packing_cost: float  # see `trees/packing.py`
    products: Library  # of float32 products on CPU, see `matmul.py`
    compiled: bool | None = None  # whether layers are (`run/compiling.py`); None: not measured
    bfloat16_speed: float | None = None  # over that of float32 products; None: nobody asked

    @classmethod
    def read(cls, path: Path) -> Measurements | None:
        """None where there is no such file, or none that can be understood."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            cost, library = float(content["packing_cost"]), content["products"]
            compiled = content.get("compiled")
            speed = content.get("bfloat16_speed")
            speed = None if speed is None else float(speed)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if library not in LIBRARIES or (library == "onednn" and not matmul.has_onednn()):
            return None
        compiled = compiled if isinstance(compiled, bool) else None
        return cls(cost, library, compiled, speed)

    def write(self, path: Path, *, first: bool = False) -> None:
        """Whole or not at all; where `first` is set a file that is there stays."""
        write_whole(path, json.dumps(asdict(self)) + "\n", first=first)


def measure(model: CausalModel, device: torch.device) -> Measurements:
    """Takes about a second."""
    if device.type != "cpu":
        return Measurements(measured_score_cost(model, device), "torch")
    cost = measured_call_cost(*attention_shape(model), computing_type(model))
    return Measurements(cost, fastest_library())


def takes_bfloat16(asked: Matmul, speed: float | None, setting: str = "train.matmul") -> bool:
    """Whether a run or an evaluation that asks for these products gets bfloat16.

    Args:
        speed: Of `Measurements`.
        setting: Which one asks.

    Raises:
        UserError: it insists on bfloat16 where that is not faster.
    """
    if asked == "float32" or speed is None:
        return False
    worth = speed >= ADVANTAGE
    if asked == "bfloat16" and not worth:
        raise UserError(
            f"{setting}=bfloat16: on this processor ({processor_name()}, "
            f"{torch.get_num_threads()} threads) bfloat16 products are {speed:.2f} times as fast "
            f"as float32 ones, so they would cost precision for nothing: set {setting}=float32, "
            "or auto, which takes bfloat16 where it is faster"
        )
    return worth


def measurements_of(
    model: CausalModel, device: torch.device, cache: Path, bfloat16: bool = False
) -> Measurements:
    """The remembered ones of a device and a model's attention, measured where there are none.

    Args:
        bfloat16: Also the speed of bfloat16 products, if the device is a CPU.
    """
    name = device_name(device)
    if device.type == "cpu":  # ATEN_CPU_CAPABILITY may take less of the processor
        name = f"{name}-{torch.backends.cpu.get_cpu_capability()}"
    parts = (name, torch.get_num_threads(), *attention_shape(model), *_weights_of_layers(model))
    key = "-".join(re.sub(r"\W+", "_", str(part)) for part in parts)
    entry = cache / "measurements" / f"{key}.json"
    found = _measured_once(entry, lambda: measure(model, device))
    if bfloat16 and device.type == "cpu" and found.bfloat16_speed is None:
        plain = found
        entry = entry.with_stem(f"{key}-bfloat16")
        found = _measured_once(
            entry, lambda: replace(plain, bfloat16_speed=bfloat16_speed(plain.products))
        )
    return found


def _measured_once(entry: Path, measured: Callable[[], Measurements]) -> Measurements:
    """What the entry holds; of several processes that measure at once, what the first one found."""
    if (known := Measurements.read(entry)) is not None:
        return known
    damaged = entry.exists()
    found = measured()
    try:
        found.write(entry, first=not damaged)
    except OSError as error:  # a read-only cache costs a second at the next start
        log.info("what was measured on this device is not kept: %s", error)
    return Measurements.read(entry) or found


def device_name(device: torch.device) -> str:
    """What kind of GPU or processor it is."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()


def processor_name() -> str:
    """The CPU's name: a cache on a shared disk serves several machines."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        return platform.machine()
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return name[1] if name else platform.machine()


_REPEATS = 15
_SMALL, _LARGE = 48, 448  # nodes of the two blocks (or rows) that are timed
_CALL_COSTS = (2**10, 2**18)


def measured_call_cost(heads: int, grouped: int, width: int, dtype: torch.dtype) -> float:
    """Scores that could be computed in the time that one more block takes, forward and backward.

    From the times of a small and a large masked block, as t = call + score * nodes^2.
    """
    small, large = (
        _seconds(_block_step(heads, grouped, width, n, dtype), lambda: None)
        for n in (_SMALL, _LARGE)
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
    layer = _first_layer(model)
    weight = _weight_of(layer)
    if layer is None or weight is None or weight.device.type != device.type:
        return RowCost().quadratic
    nodes, dtype = 4 * _LARGE, computing_type(model)
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


def computing_type(model: CausalModel) -> torch.dtype:
    """The type that the base computes in: that of its embeddings, which no quantisation changes
    (the adapter is kept in float32 beside any base)."""
    dtype: torch.dtype = model.peft_model.get_base_model().get_input_embeddings().weight.dtype
    return dtype


def _first_layer(model: CausalModel) -> Any:
    layers = getattr(model.peft_model.get_base_model().get_decoder(), "layers", None)
    return layers[0] if layers else None


def _weight_of(layer: Any) -> Tensor | None:
    """The first weight of a decoder layer's linear part, as it is stored."""
    mlp = getattr(layer, "mlp", None)
    return None if mlp is None else next(mlp.parameters(), None)


def _weights_of_layers(model: CausalModel) -> tuple[Any, ...]:
    """What else than attention's shape decides a cost: the type of products, and of weights."""
    weight = _weight_of(_first_layer(model))
    stored = () if weight is None else (weight.dtype, weight.numel())
    return computing_type(model), *stored


def _block_step(
    heads: int, grouped: int, width: int, nodes: int, dtype: torch.dtype
) -> Callable[[], None]:
    def values(count: int) -> Tensor:
        return torch.randn(1, count, nodes, width, dtype=dtype, requires_grad=True)

    query, key, value = values(heads), values(grouped), values(grouped)
    allowed = np.tril(np.ones((nodes, nodes), dtype=bool))
    tree = TreeBlocks((Block(0, nodes, ((0, nodes),), allowed),), np.arange(nodes))

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
