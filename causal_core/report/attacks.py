"""The results of `causal attack` as a run directory holds them, checked, and what is shown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from causal_core.errors import UserError
from causal_core.evaluation.metrics import SHARE, reference_model
from causal_core.evaluation.statistics import Estimate
from causal_core.files import read_small
from causal_core.visible_text import shown

FOLDER = "attack"
CAVEAT = "No break at this budget is not robustness: another search, or a larger one, may find one."
_MOST_BYTES = 2**20
_WEAK = 0.1  # an attack that breaks fewer rows of the undefended model says nothing
_KINDS = ("words", "delimiters", "suffix", "universal", "warm")  # in the order of the report

_Share = Annotated[float, Field(ge=0, le=1)]
_Count = Annotated[int, Field(ge=0, le=10**9)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Point(_Strict):
    budget: _Count
    value: _Share
    low: _Share
    high: _Share
    n: _Count


class _Result(_Strict):
    kind: str
    title: str
    unit: str
    data: str
    rows: _Count
    seed: int
    curves: Annotated[
        dict[str, Annotated[list[_Point], Field(max_length=100)]], Field(max_length=50)
    ]
    caveat: str


def attack_file(directory: Path, kind: str) -> Path:
    """Where the curves of a kind of attack are kept."""
    return directory / f"attack-{kind}.json"


def read_attacks(run_directory: Path) -> list[dict[str, Any]]:
    """What attacks on a run found, a result a kind; none where it was not attacked.

    Raises:
        UserError: a file that is not what `causal attack` writes.
    """
    found = (read_attack(run_directory / FOLDER, kind) for kind in _KINDS)
    return [result for result in found if result is not None]


def read_attack(directory: Path, kind: str) -> dict[str, Any] | None:
    """The result of one kind of attack in a directory, None where there is none (`UserError`)."""
    path = attack_file(directory, kind)
    try:
        return _Result.model_validate(json.loads(read_small(path, _MOST_BYTES))).model_dump()
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError, ValidationError):
        raise UserError(
            f"{shown(str(path))} is not what causal attack writes: remove it and attack again"
        ) from None


def too_weak(result: Mapping[str, Any]) -> str | None:
    """A warning where the attack does not break the undefended model either."""
    name = reference_model(result["curves"])
    curve = result["curves"].get(name) or []
    if not curve or curve[-1]["value"] >= _WEAK:
        return None
    return (
        f"This attack breaks {SHARE.text(curve[-1]['value'])} of the rows of {name}: too weak to "
        "say anything of a defence"
    )


def sections(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A chart and a table for each result."""
    from causal_core.report.charts import Curve, curve_chart

    found = []
    for result in results:
        names = list(result["curves"])
        levels = sorted({p["budget"] for points in result["curves"].values() for p in points})
        curves = {
            name: {p["budget"]: Estimate(p["value"], p["low"], p["high"], p["n"]) for p in points}
            for name, points in result["curves"].items()
        }
        of = f"{result['rows']} rows of {result['data']}"
        chart = curve_chart(
            result["title"], [Curve(name, curves[name]) for name in names], result["unit"],
            f"Rows broken of {of}, with 95 % intervals.",
        )  # fmt: skip
        found.append(
            {
                "title": result["title"],
                "unit": result["unit"],
                "of": of,
                "models": names,
                "chart": chart if levels else None,
                "rows": [
                    (level, [_cell(curves[name].get(level)) for name in names]) for level in levels
                ],
                "warning": too_weak(result),
            }
        )
    return found


def _cell(estimate: Estimate | None) -> dict[str, str] | None:
    if estimate is None:
        return None
    low, high = SHARE.text(estimate.low, 0), SHARE.text(estimate.high, 0)
    return {"value": SHARE.text(estimate.value), "interval": f"{low} to {high}"}
