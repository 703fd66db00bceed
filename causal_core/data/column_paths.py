"""`FIELD=PATH`: where rows of any layout have our fields, as dotted paths into them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from causal_core.data.schema import CANONICAL_NAME, INJECTION_FIELDS, TRIPLET_SCHEMA
from causal_core.errors import UserError
from causal_core.visible_text import quoted, shown

FIELDS = (*TRIPLET_SCHEMA.names, *INJECTION_FIELDS)
_MISSING = object()
_MOST_PARTS = 16  # of a path


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for a name that is close to a known one, else nothing."""
    near = difflib.get_close_matches(name[:100], list(known), n=1, cutoff=0.75)
    return f"; did you mean {shown(near[0])}?" if near else ""


class ColumnPaths:
    """Fields by the paths at which rows have them; a path that a row lacks changes nothing."""

    def __init__(self, paths: Mapping[str, str] | None = None) -> None:
        """Args:
            paths: By field. A part of a path is a key, or the number of an item of a list.

        Raises:
            UserError: no such field, or no path.
        """
        self.paths = dict(paths or {})
        for field, path in self.paths.items():
            if field not in FIELDS:
                known = nearest(field, FIELDS) or f"; known: {', '.join(FIELDS)}"
                raise UserError(f"no field is called {quoted(field)}{known}")
            if not path or path.count(".") >= _MOST_PARTS:
                raise UserError(f"{field}={quoted(path)}: expected a key or a path such as a.b.0")

    @classmethod
    def parsed(cls, items: Iterable[str]) -> ColumnPaths:
        """Of `FIELD=PATH` texts (`UserError` where one is none)."""
        paths = {}
        for item in items:
            field, separator, path = item.partition("=")
            if not separator:
                raise UserError(f"--map {quoted(item)}: expected FIELD=PATH")
            if field in paths:
                raise UserError(f"--map {field} is given twice")
            paths[field] = path
        return cls(paths)

    def heads(self) -> set[str]:
        """First parts of the paths, and whole paths: the columns to read."""
        return {name for path in self.paths.values() for name in (path, path.partition(".")[0])}

    def found_in(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """The fields whose paths a row has."""
        found = {field: _at(raw, path) for field, path in self.paths.items()}
        return {field: value for field, value in found.items() if value is not _MISSING}

    def applied(self, raw: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
        """A row with what was found in place of what it was found in, and of other spellings."""
        heads = {_head(raw, self.paths[field]) for field in found}
        rest = {
            key: value
            for key, value in raw.items()
            if key not in heads and CANONICAL_NAME.get(key) not in found
        }
        return {**rest, **found}


def _head(raw: Mapping[str, Any], path: str) -> str:
    return path if path in raw else path.partition(".")[0]


def _at(raw: Mapping[str, Any], path: str) -> Any:
    if path in raw:
        return raw[path]
    value: Any = raw
    for part in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(part, _MISSING)
        elif isinstance(value, list) and part.removeprefix("-").isdecimal() and len(part) < 8:
            place = int(part)
            value = value[place] if -len(value) <= place < len(value) else _MISSING
        else:
            return _MISSING
    return value
