"""What can be wrong with the files of a model directory, told before anything is loaded from it."""

from __future__ import annotations

import json
import os
import re
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from causal_core.errors import ModelError
from causal_core.files import checked_file, read_small
from causal_core.visible_text import quoted, shown

_ADAPTER = "adapter_config.json"
_LFS_POINTER = b"version https://git-lfs"
_POINTER_BYTES = 1024  # a pointer is some 130 bytes long
_MOST_HEADER_BYTES = 100 * 2**20  # the limit of safetensors itself
_MOST_JSON_BYTES = 64 * 2**20  # an index names every tensor, some hundred bytes each

# Parts that a model is described one by one of, in lists and modules: their number costs time.
_PARTS = re.compile(r"(?:^|_)(?:layers?|blocks?|experts?)$")
_MOST_PARTS = 10_000  # the largest models have some hundred


def check_model_directory(directory: Path) -> None:
    """Whether a directory describes a model, in Hugging Face layout; its weights are not looked at.

    Raises:
        ModelError: an adapter, no config.json, one that is no JSON object, or one that asks for
            more layers than any model has.
    """
    if directory.is_dir() and not os.access(directory, os.R_OK | os.X_OK):
        raise ModelError(
            f"{_name(directory)} may not be read by this user: give permission (chmod -R a+rX), "
            "or copy the model"
        )
    if (adapter := directory / _ADAPTER).is_file():
        base = _json(adapter).get("base_model_name_or_path")
        raise ModelError(
            f"{_name(directory)} holds an adapter ({_ADAPTER}), not a whole model: give the model "
            f"that it was trained on{f' ({quoted(base)})' if base else ''}, or merge the two first"
        )
    config = directory / "config.json"
    if not config.is_file():
        raise ModelError(
            f"{_name(directory)}: no model there (no config.json in it); give a directory in "
            "Hugging Face layout, a hub id, or `demo`"
        )
    _refuse_too_many(config, _json(config))
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
        _refuse_pointer(directory / name)


def check_weight_files(directory: Path) -> None:
    """Whether the weights of a model directory are all there and whole, by their headers and sizes.

    Raises:
        ModelError: no weights, a missing or cut-off file, or a Git LFS pointer in its place.
    """
    found = False
    for path in _weight_files(directory):
        found = True
        if path.exists() and not path.is_file():
            raise ModelError(f"{_name(path)} is no regular file: put the weights in its place")
        if not path.is_file():
            raise ModelError(
                f"{_name(directory)}: {shown(path.name)} is missing, though the index of the "
                "weights names it: download it again"
            )
        _refuse_pointer(path)
        if path.suffix == ".safetensors":
            _check_safetensors(path)
        elif not zipfile.is_zipfile(path):
            raise _damaged(path, "is no whole file of torch weights")
    if not found:
        raise ModelError(
            f"{_name(directory)} has a config.json but no weights (model.safetensors, or an index "
            "of its parts): download them into it"
        )


def _weight_files(directory: Path) -> Iterator[Path]:
    """The files that transformers will read, in its order of preference."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (directory / name).exists():
            yield directory / name
            return
        if (index := directory / f"{name}.index.json").exists():
            parts = _json(index).get("weight_map")
            if not isinstance(parts, dict) or not all(isinstance(p, str) for p in parts.values()):
                raise _damaged(index, "has no weight_map of file names")
            if any(Path(p).is_absolute() or ".." in Path(p).parts for p in parts.values()):
                raise _damaged(index, "names weights outside of the model's directory")
            yield from (directory / part for part in sorted(set(parts.values())))
            return


def _check_safetensors(path: Path) -> None:
    size = path.stat().st_size
    if not os.access(path, os.R_OK):
        raise ModelError(f"{_name(path)} may not be read by this user: give permission (chmod a+r)")
    with path.open("rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 0 < length <= min(_MOST_HEADER_BYTES, size - 8):
            raise _damaged(path, f"is no whole safetensors file ({size:,} bytes)")
        try:
            header = json.loads(file.read(length))
            ends = [int(t["data_offsets"][1]) for n, t in header.items() if n != "__metadata__"]
        except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
            raise _damaged(path, "has no readable safetensors header") from error
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise _damaged(path, f"has {size:,} bytes, its header says {expected:,}")


def _json(path: Path) -> dict[str, Any]:
    _refuse_pointer(path)
    try:
        described = json.loads(read_small(path, _MOST_JSON_BYTES).decode("utf-8"))
    except OSError as error:
        raise ModelError(f"{_name(path)} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "is not valid JSON") from error
    if not isinstance(described, dict):
        raise _damaged(path, "is no JSON object")
    return described


def _refuse_too_many(path: Path, described: dict[str, Any]) -> None:
    # One with several parts describes its text model within.
    parts = [described, *(value for value in described.values() if isinstance(value, dict))]
    for name, value in (item for part in parts for item in part.items()):
        if isinstance(value, int) and value > _MOST_PARTS and _PARTS.search(name):
            raise ModelError(
                f"{_name(path)} asks for {quoted(name)}: {quoted(value)}, and no model has more "
                f"than {_MOST_PARTS:,}: correct it, or download it again"
            )


def _refuse_pointer(path: Path) -> None:
    if not path.is_file():
        return
    try:
        if checked_file(path).st_size > _POINTER_BYTES:
            return
        with path.open("rb") as file:
            pointer = file.read(len(_LFS_POINTER)) == _LFS_POINTER
    except OSError as error:
        raise ModelError(f"{_name(path)} cannot be read: {error.strerror}") from error
    if pointer:
        raise ModelError(
            f"{_name(path)} is a Git LFS pointer, not the file itself: run `git lfs pull` in the "
            "model's directory, or download the file"
        )


def _damaged(path: Path, what: str) -> ModelError:
    return ModelError(f"{_name(path)} {what}: it is damaged or cut off; download it again")


def _name(path: Path) -> str:
    return shown(str(path))
