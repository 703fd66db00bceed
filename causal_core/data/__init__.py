"""Training data: the triplet schema, reading and writing, the leak check and the demo generator.

The names below load on first use, so that importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from causal_core.data.generator import generate_dataset
    from causal_core.data.leaks import LeakReport, check_leaks
    from causal_core.data.reader import ReadResult, read_triplets
    from causal_core.data.schema import (
        TRIPLET_SCHEMA,
        DataError,
        RowProblem,
        Triplet,
        contains_witness,
    )
    from causal_core.data.writer import write_triplets

_HOME = {
    "generate_dataset": "generator",
    "LeakReport": "leaks",
    "check_leaks": "leaks",
    "ReadResult": "reader",
    "read_triplets": "reader",
    "TRIPLET_SCHEMA": "schema",
    "DataError": "schema",
    "RowProblem": "schema",
    "Triplet": "schema",
    "contains_witness": "schema",
    "write_triplets": "writer",
}

__all__ = [
    "TRIPLET_SCHEMA",
    "DataError",
    "LeakReport",
    "ReadResult",
    "RowProblem",
    "Triplet",
    "check_leaks",
    "contains_witness",
    "generate_dataset",
    "read_triplets",
    "write_triplets",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
