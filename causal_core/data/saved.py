"""Directories that the library `datasets` has saved: which Arrow files are in them, of which split.

Read without that library: its own descriptions are three small JSON files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from causal_core.data.rules import split_name
from causal_core.files import checked_file, read_small
from causal_core.visible_text import quoted

_MAX_DESCRIPTION = 16 * 2**20  # of dataset_info.json: it lists the features and where they are from
_MOST_FILES = 10_000
_DICT, _STATE, _INFO = "dataset_dict.json", "state.json", "dataset_info.json"
# `name-train-00000-of-00003.arrow`, as the library's cache calls a file.
_CACHED = re.compile(r"(?:^|-)([A-Za-z_]+)(?:-\d+-of-\d+)?\.arrow$")


def is_saved(directory: Path) -> bool:
    """Whether a directory is one of these."""
    return any((directory / name).is_file() for name in (_DICT, _STATE, _INFO))


def saved_files(directory: Path) -> list[tuple[Path, str | None]]:
    """The Arrow files of a saved data set in their order, each with its rows' split.

    Raises:
        OSError: `strerror` says what is wrong.
    """
    if (directory / _DICT).is_file():
        splits = _description(directory / _DICT).get("splits")
        found: list[tuple[Path, str | None]] = []
        for name in _names(splits, directory / _DICT):
            split = split_name(name)
            if split is None:
                raise OSError(
                    0,
                    f"its split {quoted(name)} is none of this program's; name the directory of "
                    "one split (a folder in it)",
                )
            found += [(path, split) for path, _ in _of_one(directory / name)]
        return found
    return _of_one(directory)


def _of_one(directory: Path) -> list[tuple[Path, str | None]]:
    if (directory / _STATE).is_file():
        state = _description(directory / _STATE)
        if state.get("_indices_data_files"):
            raise OSError(
                0, "its rows were chosen by a list of numbers: flatten_indices(), then save it"
            )
        split = split_name(state.get("_split"))
        files = state.get("_data_files")
        names = [f.get("filename") if isinstance(f, Mapping) else f for f in _items(files)]
        found = [(directory / name, split) for name in _names(names, directory / _STATE)]
    else:
        paths = sorted(path for path in directory.iterdir() if path.suffix == ".arrow")
        found = [(path, _cached_split(path.name)) for path in paths]
    if not found:
        raise OSError(0, "is a directory without any .arrow file; name files instead")
    for path, _ in found[:_MOST_FILES]:
        try:
            checked_file(path)
        except FileNotFoundError:
            raise OSError(0, f"lacks {quoted(path.name)}, which it names") from None
    return found


def _cached_split(name: str) -> str | None:
    match = _CACHED.search(name)
    return split_name(match[1]) if match else None


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _names(values: Any, source: Path) -> list[str]:
    """Names of files or folders beside `source`: nothing else is to be reached through it."""
    names = _items(values)
    if len(names) > _MOST_FILES:
        raise OSError(0, f"{source.name} names {len(names):,} files, more than {_MOST_FILES:,}")
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or name == ".." or "\0" in name:
            raise OSError(0, f"{source.name} names {quoted(name)}, which is no name of a file")
    return names


def _description(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(read_small(path, _MAX_DESCRIPTION))
    except (ValueError, RecursionError):
        raise OSError(0, f"its {path.name} is no JSON") from None
    if not isinstance(found, dict):
        raise OSError(0, f"its {path.name} is no JSON object")
    return found
