"""What summary.json says of a run, checked: a run directory may be another's, or damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator

from causal_core.config_sections import FLOAT32, Products
from causal_core.errors import UserError
from causal_core.evaluation.metrics import TEST_METRICS, TRAINED
from causal_core.files import SUMMARY, read_small
from causal_core.visible_text import quoted, shown

_MOST_BYTES = 64 * 2**20
_DEEPEST = 32
_Count = Annotated[int, Field(ge=0, le=10**15)]
_Number = Annotated[float, Field(ge=-1e15, le=1e15)]  # a thousand times it is finite, too
_Measured = _Number | None  # null where there was nothing to measure, or it was not finite


class _Recorded(BaseModel):
    """Types are as they are written; what a later version adds is let through."""

    model_config = ConfigDict(extra="allow", strict=True)


class _Estimate(_Recorded):
    value: _Measured = None
    low: _Measured = None
    high: _Measured = None
    n: _Count | None = None


_Metrics: type[BaseModel] = create_model(
    "_Metrics",
    __base__=_Recorded,
    n=(_Count | None, None),
    witnesses=(_Count | None, None),
    own_is_attacked=(_Count | None, None),
    **{metric.key: (_Estimate | None, None) for metric in TEST_METRICS},  # type: ignore[call-overload]
)


class _TestSet(_Metrics):  # type: ignore[misc, valid-type]
    families: dict[str, _Metrics] | None = None  # type: ignore[valid-type]
    tasks: dict[str, _Metrics] | None = None  # type: ignore[valid-type]


class _Model(_Recorded):
    sets: Annotated[dict[str, _TestSet], Field(max_length=100)] | None = None


class _RowByRow(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    reference: str
    only_reference: _Count
    only_trained: _Count
    p: _Number


class _Example(_Recorded):
    witness: str | None = None
    answers: dict[str, str] | None = None
    attack_succeeded: dict[str, bool | None] | None = None


class _Evaluation(_Recorded):
    models: Annotated[dict[str, _Model], Field(max_length=50)] | None = None
    matmul: Products = FLOAT32  # earlier ones do not say
    descriptions: dict[str, str] = {}
    paired: dict[str, _RowByRow] | None = None
    examples: list[_Example] | None = None


class _Memory(_Recorded):
    measured_bytes: _Measured = None
    predicted_bytes: _Measured = None
    error: _Measured = None


class _Facts(_Recorded):
    steps: _Count | None = None
    planned_steps: _Count | None = None
    samples: _Count | None = None
    skipped_steps: _Count | None = None
    epochs: _Count | None = None
    best_step: _Count | None = None
    workers: _Count | None = None
    seconds: _Measured = None
    peak_memory_bytes: _Measured = None
    parameters: dict[str, _Count | None] | None = None
    memory: _Memory | None = None


class _EndedFacts(_Facts):
    steps: _Count
    planned_steps: _Count
    samples: _Count
    skipped_steps: _Count
    seconds: _Number


class _Config(_Recorded):
    model: dict[str, Any] | None = None
    loss: dict[str, _Measured | str] | None = None


class _Summary(_Recorded):
    status: str | None = None
    run: _Facts | None = None
    config: _Config | None = None
    evaluation: _Evaluation | None = None


class _EndedSummary(_Summary):
    status: str
    run: _EndedFacts
    config: _Config
    evaluation: _Evaluation | None

    @model_validator(mode="after")
    def _evaluated_itself(self) -> _EndedSummary:
        if self.evaluation is not None and TRAINED not in (self.evaluation.models or {}):
            raise ValueError("the evaluation does not hold the trained model")
        return self


def read_summary(directory: Path, *, ended: bool = False) -> dict[str, Any]:
    """summary.json of a run directory as plain values, each of the type that it is used as.

    Args:
        ended: The run has to have come to its end: what it says of itself is there.

    Raises:
        UserError: there is none, or it is not what this program writes.
    """
    path, where = directory / SUMMARY, shown(str(directory))
    try:
        content = read_small(path, _MOST_BYTES)
    except FileNotFoundError:
        raise UserError(
            f"{where} has no {SUMMARY}, so there is nothing to report: give the directory of a run "
            f"that has ended, or train first (causal train CONFIG run.dir={where})"
        ) from None
    except OSError as error:
        raise UserError(f"{shown(str(path))} cannot be read: {error.strerror}") from None
    try:
        summary = json.loads(content)
    except (ValueError, RecursionError) as error:
        reason = quoted(str(error), 200)[1:-1]
        raise UserError(f"{shown(str(path))} is not valid JSON ({reason})") from None
    if not isinstance(summary, dict):
        kind = type(summary).__name__
        raise UserError(f"{shown(str(path))} must hold a JSON object, not {kind}")
    if _is_deeper(summary, _DEEPEST):
        raise UserError(f"{shown(str(path))} is nested more than {_DEEPEST} levels deep")
    summary = _without_nan(summary)
    try:
        (_EndedSummary if ended else _Summary).model_validate(summary)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)[0]
        at = quoted(".".join(str(part) for part in found["loc"]), 100)
        raise UserError(
            f"{shown(str(path))} is not what a run writes: {at}: {found['msg']}; train or evaluate "
            "the run again, or restore the file"
        ) from None
    return dict(summary)


def _is_deeper(tree: object, depth: int) -> bool:
    level = [tree]
    for _ in range(depth):
        inner = [node.values() if isinstance(node, dict) else node
                 for node in level if isinstance(node, dict | list)]  # fmt: skip
        level = [child for nodes in inner for child in nodes]
    return bool(level)


def _without_nan(tree: Any) -> Any:
    """NaN as null: JSON as Python writes it may hold a loss that was not finite."""
    if isinstance(tree, dict):
        return {key: _without_nan(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_without_nan(value) for value in tree]
    return None if isinstance(tree, float) and tree != tree else tree
