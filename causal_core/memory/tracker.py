"""Follows every live tensor storage of one device while ordinary torch code runs.

A dispatch mode sees each operation below autograd, on real tensors and on the meta device alike
(where nothing is computed and nothing is held). A storage counts from the operation that made it
until its last reference goes, so saved activations, views and what lingers are counted as they
are, without a model of any of them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from causal_core.memory.meta_results import run

# What a storage is for. A tensor that is made gets the tracker's current category.
COMPONENTS = (
    "base_weights",
    "quantization_state",
    "adapter",
    "projection",
    "optimizer_state",
    "gradients",
    "activations",
    "attention_masks",
    "label_logits",
    "inputs",
    "workspace",
)
_INDEX = {name: i for i, name in enumerate(COMPONENTS)}

Place = tuple[str, int]  # phase ("forward", "backward", ...), decoder layer (-1: outside of them)


@dataclass(frozen=True)
class Peak:
    """The most bytes that were live at once in one place, and what they were for."""

    total: int
    by_component: tuple[int, ...]  # in the order of COMPONENTS


class _Handle(weakref.ref):  # type: ignore[type-arg]
    """A weak reference to a storage that remembers what to subtract when it goes."""

    __slots__ = ("component", "key", "size")
    key: int
    size: int
    component: int


class StorageTracker(TorchDispatchMode):
    """Live bytes by component, with the peak of each place that the traced code went through.

    Args:
        device: Only storages of this device type count.
        granularity: Sizes are rounded up to it (the CUDA allocator's is 512 bytes; 1: exact).
        events: Receives (+bytes, key) and (-bytes, key) in the order of events, for the replay.
        held_inside: Sizes of what an opaque operation holds while it runs, on the meta device.
    """

    def __init__(
        self,
        device: str,
        granularity: int = 1,
        events: list[tuple[int, int]] | None = None,
        held_inside: Callable[[Any, Any, Any], tuple[int, ...]] | None = None,
    ) -> None:
        super().__init__()
        self._device = device
        self._granularity = granularity
        self._events = events
        self._held_inside = held_inside
        self._live: dict[int, _Handle] = {}
        self._by_component = [0] * len(COMPONENTS)
        self._component = _INDEX["workspace"]
        self._place: Place = ("load", -1)
        self._serial = 0
        self.total = 0
        self.peaks: dict[Place, Peak] = {}
        self._highest = 0

    @property
    def peak(self) -> int:
        """The most bytes live at once so far."""
        return max((p.total for p in self.peaks.values()), default=self.total)

    def at(self, phase: str, layer: int = -1) -> None:
        """From now on the traced code is here."""
        self._place = (phase, layer)
        known = self.peaks.get(self._place)
        self._highest = known.total if known else -1
        self._note()

    @property
    def place(self) -> Place:
        return self._place

    def making(self, component: str) -> str:
        """From now on new storages are for `component`; returns what it was before."""
        before, self._component = COMPONENTS[self._component], _INDEX[component]
        return before

    def assign(self, tensor: Tensor, component: str) -> None:
        """Counts an existing tensor, or moves a counted one, under `component`."""
        if tensor.device.type != self._device:
            return
        storage = tensor.untyped_storage()
        handle = self._live.get(storage._cdata)
        if handle is None:
            before, self._component = self._component, _INDEX[component]
            self._add(storage)
            self._component = before
        else:
            self._by_component[handle.component] -= handle.size
            handle.component = _INDEX[component]
            self._by_component[handle.component] += handle.size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].device.type == "meta":
            return 1.0  # a meta tensor has no value; any finite one takes the ordinary path
        kwargs = kwargs or {}
        held = self._hold(func, args, kwargs)
        out = run(func, args, kwargs) if self._device == "meta" else func(*args, **kwargs)
        if isinstance(out, Tensor):
            self._see(out)
        elif isinstance(out, tuple | list):
            for item in out:
                if isinstance(item, Tensor):
                    self._see(item)
        del held
        return out

    def _hold(self, func: Any, args: Any, kwargs: Any) -> list[Tensor]:
        if self._held_inside is None:
            return []
        sizes = self._held_inside(func, args, kwargs)
        held = [torch.empty(size, dtype=torch.uint8, device=self._device) for size in sizes]
        for tensor in held:
            self._see(tensor)
        return held

    def _see(self, tensor: Tensor) -> None:
        if tensor.device.type != self._device:
            return
        storage = tensor.untyped_storage()
        if storage._cdata not in self._live:
            self._add(storage)

    def _add(self, storage: torch.UntypedStorage) -> None:
        size = -(-storage.nbytes() // self._granularity) * self._granularity
        handle = _Handle(storage, self._gone)
        handle.key, handle.size, handle.component = storage._cdata, size, self._new_component()
        self._live[handle.key] = handle
        self._by_component[handle.component] += size
        self.total += size
        if self._events is not None and size:
            self._events.append((size, handle.key))
        if self.total > self._highest:
            self._note()

    def _new_component(self) -> int:
        # In a backward, only recomputation (gradient checkpointing) runs with gradients enabled.
        if self._place[0] == "backward" and self._component == _INDEX["activations"]:
            return self._component if torch.is_grad_enabled() else _INDEX["workspace"]
        return self._component

    def _gone(self, handle: _Handle) -> None:  # type: ignore[override]
        if self._live.get(handle.key) is handle:
            del self._live[handle.key]
        self._by_component[handle.component] -= handle.size
        self.total -= handle.size
        if self._events is not None and handle.size:
            self._events.append((-handle.size, handle.key))

    def _note(self) -> None:
        if self.total > self._highest:
            self._highest = self.total
            self.peaks[self._place] = Peak(self.total, tuple(self._by_component))
