"""The detector of a run (`causal guard`) in its export: numbers, and what they were found worth."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from causal_core.errors import UserError
from causal_core.evaluation.guard_file import FOLDER, RECORD, WEIGHTS, read_guard, write_guard
from causal_core.evaluation.representations import HEAD
from causal_core.files import read_small, write_whole
from causal_core.visible_text import shown

_MOST_BYTES = 2**20
_STATES = "the mean of the last hidden states over the prompt's tokens"


def export_detector(place: Path, run: Path, weights: str) -> dict[str, Any] | None:
    """Copies the detector that was fitted on these weights, and says what it is; None: there is no
    such detector.

    Raises:
        UserError: its files are damaged.
    """
    try:
        guard = read_guard(run / FOLDER / WEIGHTS)
    except FileNotFoundError:
        return None
    if guard.weights != weights:
        return None  # of an earlier checkpoint: it would judge other states
    record = run / FOLDER / RECORD
    try:
        content = read_small(record, _MOST_BYTES)
        better = json.loads(content)["better"]
        if not all(isinstance(found, bool) for found in better.values()):
            raise ValueError("`better` says something else than yes or no")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as problem:
        raise UserError(
            f"{shown(str(record))} is damaged ({shown(str(problem)[:200])}): fit the detector "
            "again with causal guard RUN_DIR"
        ) from problem
    (place / FOLDER).mkdir()
    write_guard(place / FOLDER / WEIGHTS, guard)
    write_whole(place / FOLDER / RECORD, content)
    return {"read_out": guard.kind, "better": better}


def detector_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """What a card says of it; names of test sets are shown by who calls."""
    head = " after the head in `head/`" if found["read_out"] == HEAD else ""
    yield (
        f"`{FOLDER}/{WEIGHTS}` holds `weight`, `bias` and `threshold`: a prompt is suspected where "
        f"`weight · x + bias >= threshold`, with `x` {_STATES}{head}. These are the "
        f"states that the answer begins with. `{FOLDER}/{RECORD}` has what was measured."
    )
    if not found["better"] or not all(found["better"].values()):
        yield (
            "It was not shown to tell more than the prompt's length and words do on every test "
            "set: it is no filter, and nothing uses it unless asked to."
        )
