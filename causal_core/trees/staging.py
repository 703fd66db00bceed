"""Many small tensors in one buffer, so that one copy takes all of them to a device.

A micro-batch has some forty to a hundred tensors of a few kilobytes. Copied one by one, each costs
the training thread a call and a page-locked buffer of its own; together they are one buffer, made
and page-locked on the thread that prepares batches, and one copy that runs beside the computation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

_ALIGNMENT = 16  # bytes: of every tensor's place, so that any type can be read there

Value = TypeVar("Value")


def each_tensor(value: Value, of: Callable[[Tensor], Tensor]) -> Value:
    """A value of dataclasses, dictionaries and lists with `of` applied to each tensor in it."""
    return _mapped(value, of)  # type: ignore[no-any-return]


def _mapped(value: Any, of: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return of(value)
    if isinstance(value, dict):
        return {key: _mapped(item, of) for key, item in value.items()}
    if isinstance(value, list):
        return [_mapped(item, of) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        made = object.__new__(type(value))
        for field in fields(value):
            object.__setattr__(made, field.name, _mapped(getattr(value, field.name), of))
        return made
    return value


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors in a value, in the order of `each_tensor`."""
    found: list[Tensor] = []

    def collected(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    each_tensor(value, collected)
    return found


def staged(value: Value, pinned: bool) -> tuple[Value, Tensor]:
    """The value with its tensors as views of one buffer of bytes, and the buffer.

    Args:
        value: With all its tensors on the CPU.
        pinned: In page-locked memory, from which a GPU copies by itself.
    """
    starts, size = [], 0
    for tensor in tensors_of(value):
        starts.append(size)
        size += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    buffer = torch.zeros(size, dtype=torch.uint8, pin_memory=pinned)
    places = iter(starts)

    def placed(tensor: Tensor) -> Tensor:
        start = next(places)
        return _view(buffer, start, tensor).copy_(tensor)

    return each_tensor(value, placed), buffer


def moved(value: Value, buffer: Tensor, device: torch.device) -> Value:
    """What `staged` gave, on a device: one copy, behind which the host need not wait."""
    there = buffer.to(device, non_blocking=True)
    return each_tensor(value, lambda t: _view(there, int(t.storage_offset()) * t.element_size(), t))


def on_device(value: Value, device: torch.device) -> Value:
    """The value on a device, by one copy if it is not there."""
    if all(tensor.device.type == device.type for tensor in tensors_of(value)):
        return value
    return moved(*staged(value, pinned=device.type == "cuda"), device)


def _view(buffer: Tensor, start: int, like: Tensor) -> Tensor:
    """The part of a buffer, from a byte on, that has a tensor's type and shape."""
    return buffer[start : start + like.nbytes].view(like.dtype).view(like.shape)
