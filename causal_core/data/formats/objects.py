"""Parsed JSON values on their way to rows: an object is one, anything else is a problem."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from causal_core.data.reading import Reading
from causal_core.data.rules import Finding
from causal_core.data.schema import CANONICAL_NAME, INJECTIONS
from causal_core.visible_text import quoted, shown


class Object(dict[str, Any]):
    """A JSON object that remembers which of its keys were repeated (an `object_pairs_hook`)."""

    __slots__ = ("repeated",)

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.repeated: Sequence[str] = ()
        if len(self) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            self.repeated = [key for key, count in counts.items() if count > 1]


def take_value(value: Any, line: int, text: str, reading: Reading) -> None:
    """Hands one parsed value to `reading`; `text` is what it was parsed from."""
    if not isinstance(value, Object):
        reading.refuse_unparsed(line, "not a JSON object", text)
        return
    repeated = _repeated(value)
    injections = value.get(INJECTIONS)
    for number, injection in enumerate(injections if isinstance(injections, list) else ()):
        if isinstance(injection, Object):
            repeated += _repeated(injection, f"{INJECTIONS}[{number}].")
    reading.take(value, line, repeated, text)


def _repeated(value: Object, place: str = "") -> list[Finding]:
    return [
        (place + CANONICAL_NAME.get(key, shown(key)), f"the key {quoted(key)} is given twice")
        for key in value.repeated
    ]
