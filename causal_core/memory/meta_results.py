"""Operations on meta tensors, each computed once for the same sizes.

On the meta device an operation only works out what its result looks like, and many do it in Python:
as slow as a small real one. A trace repeats the same few hundred thousands of times, so what came
out is remembered by what went in, and an empty tensor of that layout is made.

Results that share memory with what went in are made by the operation itself, as are those of
operations that change an input's layout, see other devices, or take no tensor.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

_MOST_KNOWN = 1 << 16


class _Fresh(NamedTuple):
    """A result with a storage of its own."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


class _Given(NamedTuple):
    """A result that is one of the tensors that went in, by its place among them."""

    place: int


_Result = _Fresh | _Given | None
_known: dict[Any, tuple[type, tuple[_Result, ...]] | None] = {}  # None: it has to run
_kept: dict[int, Any] = {}  # operations whose identities are in use: their own hash is slow


def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What `func(*args, **kwargs)` gives, with the same storages made and shared."""
    tensors: list[Tensor] = []
    try:
        key = (id(func), _key(args, tensors), _key(kwargs.items(), tensors) if kwargs else None)
        if len(tensors) > 1:  # which of them are one
            places: dict[int, int] = {}
            same = tuple(places.setdefault(id(t), n) for n, t in enumerate(tensors))
            key = (*key, same)  # type: ignore[assignment]
        if key in _known:
            known = _known[key]
            return func(*args, **kwargs) if known is None else _made(known, tensors)
    except (_OthersError, TypeError):  # TypeError: of an argument that has no hash
        return func(*args, **kwargs)
    if not tensors:  # sizes may follow from any number
        return func(*args, **kwargs)
    before = [_layout(tensor) for tensor in tensors]
    out = func(*args, **kwargs)
    if len(_known) >= _MOST_KNOWN:
        _known.clear()
    unchanged = before == [_layout(tensor) for tensor in tensors]
    _kept[id(func)] = func
    _known[key] = _described(out, tensors) if unchanged else None
    return out


class _OthersError(Exception):
    """A tensor that is no ordinary meta tensor."""


def _key(values: Any, tensors: list[Tensor]) -> tuple[Any, ...]:
    """Stands for arguments: layouts of tensors, which are also listed, and all else as it is."""
    found: list[Any] = []
    for value in values:
        if isinstance(value, Tensor):
            if not value.is_meta or value.layout is not torch.strided:
                raise _OthersError
            tensors.append(value)
            found.append((value.shape, value.stride(), value.dtype))
        elif isinstance(value, list | tuple):
            found.append(_key(value, tensors))
        else:
            found.append((type(value), value))  # 1, 1.0 and True are equal
    return tuple(found)


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    storage = tensor.untyped_storage()
    return tensor.shape, tensor.stride(), tensor.dtype, storage._cdata, storage.nbytes()


def _described(out: Any, tensors: list[Tensor]) -> tuple[type, tuple[_Result, ...]] | None:
    """How to make the same results again; None where the operation has to."""
    several = isinstance(out, list | tuple)
    storages = {tensor.untyped_storage()._cdata for tensor in tensors}
    results: list[_Result] = []
    for item in out if several else (out,):
        if item is None:
            results.append(None)
            continue
        given = [n for n, tensor in enumerate(tensors) if tensor is item]
        if given:
            results.append(_Given(given[0]))
            continue
        if type(item) is not Tensor or not item.is_meta or item.layout is not torch.strided:
            return None
        storage = item.untyped_storage()
        fresh = _Fresh(tuple(item.shape), item.stride(), item.dtype)
        made = torch.empty_strided(*fresh[:2], dtype=fresh.dtype, device="meta")
        if storage._cdata in storages or storage.nbytes() != made.untyped_storage().nbytes():
            return None
        storages.add(storage._cdata)
        results.append(fresh)
    return type(out) if several else type(None), tuple(results)


def _made(known: tuple[type, tuple[_Result, ...]], tensors: list[Tensor]) -> Any:
    kind, results = known
    found = [
        None
        if result is None
        else tensors[result.place]
        if isinstance(result, _Given)
        else torch.empty_strided(result.size, result.stride, dtype=result.dtype, device="meta")
        for result in results
    ]
    return found[0] if kind is type(None) else kind(found)
