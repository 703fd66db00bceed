"""Which rows the linter looks at: so many that its time and memory do not grow with the file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from causal_core.data.schema import INJECTIONS

MOST_ROWS = 20_000  # of a split, evenly spaced over it
MOST_CHARACTERS = 20_000  # of a text
Row = Mapping[str, Any]
_TEXTS = ("system_instruction", "context", "benign_input", "benign_output", "benign_cf_input")
_ATTACK_TEXTS = ("injection_input", "injection_output", "attack_output")


def sampled(table: pa.Table) -> list[Row]:
    """Rows of a split with texts cut to what is looked at; the same ones every time."""
    count = min(MOST_ROWS, table.num_rows)
    places = np.linspace(0, max(0, table.num_rows - 1), count).astype(np.int64)
    rows: list[Row] = []
    for chunk in np.array_split(places, max(1, count // 1024)):
        rows += (_cut(row) for row in table.take(pa.array(chunk)).to_pylist())
    return rows


def attacks(rows: list[Row]) -> Iterator[tuple[Row, Row]]:
    """Every injection with its row."""
    for row in rows:
        for injection in row[INJECTIONS]:
            yield row, injection


def texts(row: Row) -> Iterator[tuple[str, str]]:
    """The name and the text of every field that a model reads or writes."""
    yield from ((name, row[name]) for name in _TEXTS if row[name])
    for injection in row[INJECTIONS]:
        yield from ((name, injection[name]) for name in _ATTACK_TEXTS if injection[name])


def _cut(value: Any) -> Any:
    if isinstance(value, str):
        return value[:MOST_CHARACTERS]
    if isinstance(value, dict):
        return {name: _cut(inner) for name, inner in value.items()}
    return [_cut(inner) for inner in value] if isinstance(value, list) else value
