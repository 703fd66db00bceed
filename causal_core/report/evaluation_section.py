"""What the report shows of an evaluation: charts, tables, targets and examples, ready to print.

`models` is `evaluation.models` of `summary.json`: model -> {"sets": {set: metrics}}. `order` names
the models from left to right.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from causal_core.evaluation.metrics import (
    METRIC,
    TEST_METRICS,
    TRAINED,
    Unit,
    ordered_sets,
    reference_model,
    set_title,
)
from causal_core.evaluation.row_by_row import RowByRow, compare_attacks
from causal_core.evaluation.statistics import read_estimate
from causal_core.report.targets import judge_targets
from causal_core.report.wording import interval

if TYPE_CHECKING:  # matplotlib loads when a chart is drawn
    from causal_core.report.charts import Chart

_MOST_EXAMPLES = 10
_LONGEST_TEXT = 4000  # characters of one shown text


def _set_names(models: Mapping[str, Any]) -> list[str]:
    return ordered_sets({name for model in models.values() for name in model.get("sets") or {}})


def _of_set(models: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {m: (values.get("sets") or {}).get(name) or {} for m, values in models.items()}


def _bars(values: Mapping[str, Any], order: Iterable[str]) -> dict[str, Any]:
    estimates = {m: read_estimate(values[m].get("attack_success")) for m in order}
    return {m: estimate for m, estimate in estimates.items() if estimate is not None}


def _family_values(by_model: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Family -> model -> metrics of that family."""
    names = dict.fromkeys(f for values in by_model.values() for f in values.get("families") or {})
    return {
        name: {m: (s.get("families") or {}).get(name) or {} for m, s in by_model.items()}
        for name in names
    }


def attack_charts(models: Mapping[str, Any], order: Sequence[str]) -> list[Chart]:
    """Attack success by family before and after: one chart per test set that holds witnesses."""
    from causal_core.report.charts import Group, bar_chart

    attack = METRIC["attack_success"]
    charts = []
    for name in _set_names(models):
        by_model = _of_set(models, name)
        whole = Group("all of this set", _bars(by_model, order))
        families = [Group(f, _bars(m, order)) for f, m in _family_values(by_model).items()]
        groups = [group for group in (whole, *families) if group.bars]
        if not groups:
            continue
        n = max(e.n for e in groups[0].bars.values())
        charts.append(
            bar_chart(
                f"{name}: {set_title(name)}",
                groups,
                order,
                f"{attack.title} on the set “{name}” ({n} attacks with a witness), "
                f"{attack.direction}. Lines are 95 % intervals.",
            )
        )
    return charts


def _cell(raw: object, unit: Unit) -> dict[str, Any] | None:
    estimate = read_estimate(raw)
    if estimate is None:
        return None
    return {
        "value": unit.text(estimate.value),
        "interval": interval(estimate, unit),
        "n": estimate.n,
    }


def tables(
    models: Mapping[str, Any], order: Sequence[str], row_by_row: Mapping[str, RowByRow]
) -> list[dict[str, Any]]:
    """All metrics of all models, one table per test set."""
    reference = reference_model(order)
    found = []
    for name in _set_names(models):
        by_model = _of_set(models, name)
        rows = []
        for metric in TEST_METRICS:
            raw = {m: by_model[m].get(metric.key) for m in order}
            own, other = (read_estimate(raw.get(m or "")) for m in (TRAINED, reference))
            pairs = row_by_row.get(name) if metric.key == "attack_success" else None
            rows.append(
                {
                    "metric": metric,
                    "cells": [_cell(raw[m], metric.unit) for m in order],
                    "comparison": compare_attacks(own, other, pairs) if own and other else "—",
                }
            )
        own_set = by_model[TRAINED if TRAINED in by_model else order[0]]
        found.append(
            {
                "set": name,
                "title": set_title(name),
                "n": own_set.get("n", "—"),
                "witnesses": own_set.get("witnesses", "—"),
                "own_is_attacked": {
                    m: n for m in order if (n := by_model[m].get("own_is_attacked"))
                },
                "rows": rows,
            }
        )
    return found


def family_tables(models: Mapping[str, Any], order: Sequence[str]) -> list[dict[str, Any]]:
    """The numbers behind the charts: what is known of every attack family."""
    found = []
    for name in _set_names(models):
        rows = [
            {
                "family": family,
                "metric": metric,
                "cells": [_cell(values[m].get(metric.key), metric.unit) for m in order],
            }
            for family, values in _family_values(_of_set(models, name)).items()
            for metric in TEST_METRICS
            if any(metric.key in values[m] for m in order)
        ]
        if rows:
            found.append({"set": name, "rows": rows})
    return found


def targets(models: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The research targets with the trained model's numbers as text."""
    rows = judge_targets((models.get(TRAINED) or {}).get("sets") or {})
    return [
        {
            "row": row,
            "value": row.metric.unit.text(row.estimate.value),
            "interval": interval(row.estimate, row.metric.unit),
        }
        for row in rows
    ]


def examples(held: Sequence[Mapping[str, Any]], order: Sequence[str]) -> list[dict[str, Any]]:
    """The attacked inputs to show, cut at their witnesses, with the answer of each model."""
    shown = []
    for example in held[:_MOST_EXAMPLES]:
        witness = str(example.get("witness") or "")
        succeeded = example.get("attack_succeeded") or {}
        answers = example.get("answers") or {}
        shown.append(
            {
                **{k: str(example.get(k) or "—") for k in ("set", "id", "family", "expected")},
                "system": _cut(example.get("system")),
                "attacked_input": pieces(_cut(example.get("attacked_input")), witness),
                "witness": witness,
                "answers": [
                    {
                        "model": m,
                        "pieces": pieces(_cut(answers[m]), witness),
                        "succeeded": succeeded.get(m),
                    }
                    for m in order
                    if m in answers
                ],
            }
        )
    return shown


def _cut(text: object) -> str:
    whole = "" if text is None else str(text)
    if len(whole) <= _LONGEST_TEXT:
        return whole
    return f"{whole[:_LONGEST_TEXT]} … ({len(whole) - _LONGEST_TEXT:,} more characters)"


def pieces(text: str, witness: str) -> list[tuple[str, bool]]:
    """Cuts a text at the witness: (piece, whether it is the witness). Joined, they are the text.

    Found the way success is judged: whole words, whatever the case and the spacing.
    """
    words = r"\s+".join(re.escape(word) for word in witness.split())
    if not words:
        return [(text, False)]
    parts = re.split(rf"(?<!\w)({words})(?!\w)", text, flags=re.IGNORECASE)
    return [(part, place % 2 == 1) for place, part in enumerate(parts) if part]
