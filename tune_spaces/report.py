"""The sweep's report: report.html, from the ledger alone."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from causal_core.amounts import gib
from causal_core.files import write_whole
from causal_core.report.html import render
from tune_spaces.budget import budget_text
from tune_spaces.campaign import Campaign
from tune_spaces.charts import (
    Dot,
    importance_chart,
    memory_chart,
    parallel_chart,
    pareto_chart,
)
from tune_spaces.ledger import Trial, ranked, violations
from tune_spaces.objectives import OBJECTIVES, shown, shown_interval, value_of
from tune_spaces.searcher import study_of
from tune_spaces.space import describe, short_titles, show

REPORT = "report.html"
_FEW = 4  # finished trials below which importance would be made up
_BESIDE = ("benign_exact", "attack_success", "peak_memory_bytes")  # to draw one objective against


def write_report(campaign: Campaign) -> Path:
    """Writes report.html into the sweep's directory and returns its path."""
    page = render("sweep.html.j2", _context(campaign), "tune_spaces")
    return write_whole(campaign.sweep.directory / REPORT, page)


def _context(campaign: Campaign) -> dict[str, Any]:
    sweep, trials = campaign.sweep, campaign.ledger.trials
    front = ranked(trials, sweep)
    best = next((t for t in trials if t.number == front[0]), None) if front else None
    aims = list(dict.fromkeys([*sweep.tune.objectives, *sweep.tune.constraints]))
    paths = list(sweep.tune.space.root)
    return {
        "title": sweep.directory.name,
        "facts": _facts(campaign, trials),
        "best": None
        if best is None
        else {"number": best.number, "point": describe(best.point),
              "figures": [(OBJECTIVES[n].metric.title, _figure(best, n)) for n in aims]},
        "front": front,
        "charts": _charts(campaign, trials, front),
        "titles": short_titles(paths),
        "aims": [OBJECTIVES[name].metric.title for name in aims],
        "rows": [
            {
                "number": trial.number,
                "mark": "★" if trial.number in front[:1] else "•" if trial.number in front else "",
                "values": [show(trial.point[p]) if p in trial.point else "—" for p in paths],
                "status": trial.status,
                "figures": [_figure(trial, name) for name in aims],
                "predicted": gib(trial.predicted_bytes) if trial.predicted_bytes else "—",
                "measured": shown("peak_memory_bytes", _measured(trial)),
                "tokens": f"{trial.micro_batch_tokens:,}" if trial.micro_batch_tokens else "—",
                "seconds": shown("seconds", value_of(trial.metrics, "seconds")),
                "why": _why(campaign, trial),
            }
            for trial in trials
        ],
        "config": sweep.to_yaml(),
    }  # fmt: skip


def _facts(campaign: Campaign, trials: Sequence[Trial]) -> list[tuple[str, str]]:
    sweep = campaign.sweep
    counts = {s: sum(t.status == s for t in trials) for s in ("finished", "stopped", "failed")}
    return [
        ("Model", sweep.run.model.name_or_path),
        ("Aims at", ", ".join(OBJECTIVES[n].metric.title for n in sweep.tune.objectives)),
        ("Searcher", f"{sweep.tune.searcher}, seed {sweep.tune.seed}"),
        ("Trials", ", ".join(f"{n} {s}" for s, n in counts.items() if n) or "none"),
        ("Refused by the budget", str(sum(t.status == "refused" for t in trials))),
        ("Budget per worker", budget_text(sweep.budgets) or "none"),
    ]


def _charts(campaign: Campaign, trials: Sequence[Trial], front: Sequence[int]) -> list[Any]:
    sweep = campaign.sweep
    finished = [t for t in trials if t.status == "finished"]
    charts = []
    first = sweep.tune.objectives[0]
    second = next(
        (n for n in (*sweep.tune.objectives[1:], *_BESIDE) if n != first), "peak_memory_bytes"
    )
    dots = [
        dot
        for trial in finished
        if (dot := _dot(trial, second, first, _kind(campaign, trial, front))) is not None
    ]
    if dots:
        charts.append(pareto_chart(dots, second, first))
    rows = [
        (t.number, t.comparable_bytes, int(measured))
        for t in trials
        if t.comparable_bytes is not None and (measured := _measured(t)) is not None
    ]
    refused = [t.comparable_bytes for t in trials if t.status == "refused" and t.comparable_bytes]
    if rows or refused:
        charts.append(memory_chart(rows, sweep.budget_bytes, refused))
    importance = _importance(campaign, finished)
    if importance:
        charts.append(importance_chart(importance, first))
    if len(finished) > 1:
        charts.append(_parallel(campaign, finished, front, first))
    return charts


def _importance(campaign: Campaign, finished: Sequence[Trial]) -> dict[str, float]:
    """Importance of each dimension for the first objective; empty where there is too little."""
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    usable = [t for t in finished if value_of(t.metrics, campaign.sweep.tune.objectives[0])]
    if len(usable) < _FEW:
        return {}
    sign = -1.0 if OBJECTIVES[campaign.sweep.tune.objectives[0]].maximize else 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they say of few trials stands under the chart
        optuna.logging.set_verbosity(logging.ERROR)
        try:
            found = get_param_importances(
                study_of(campaign.sweep, finished, seed=0),
                evaluator=PedAnovaImportanceEvaluator(),
                target=lambda trial: sign * trial.values[0],
            )
        except (ValueError, RuntimeError):  # no dimension that all trials have, or no spread
            return {}
    total = sum(found.values())
    if not total > 0:
        return {}
    merged: dict[str, float] = {}
    for name, share in found.items():
        path = name.partition("|")[0]  # a term's weight and whether it is on are one dimension
        merged[path] = merged.get(path, 0.0) + share / total
    return dict(sorted(merged.items(), key=lambda item: -item[1]))


def _parallel(
    campaign: Campaign, finished: Sequence[Trial], front: Sequence[int], objective: str
) -> Any:
    paths = list(campaign.sweep.tune.space.root)
    columns = [[t.point.get(path) for t in finished] for path in paths]
    columns.append([value_of(t.metrics, objective) for t in finished])
    scales = [_scale(column) for column in columns]
    rows = [
        (
            trial.number,
            [scale[0].get(repr(column[i])) for column, scale in zip(columns, scales, strict=True)],
            _kind(campaign, trial, front),
        )
        for i, trial in enumerate(finished)
    ]
    ticks = [scale[1] for scale in scales]
    last = [(p, shown(objective, float(text))) for p, text in ticks[-1]]
    ticks = [*([(p, _tick(text)) for p, text in axis] for axis in ticks[:-1]), last]
    return parallel_chart(rows, [*paths, objective], ticks)


def _tick(text: str) -> str:
    try:
        return f"{float(text):.3g}"
    except ValueError:
        return text if len(text) <= 14 else text[:13] + "…"


def _scale(column: Sequence[Any]) -> tuple[dict[str, float], list[tuple[float, str]]]:
    """Positions in [0, 1] by value, and the labels of an axis: numbers by size, words in order."""
    known = [v for v in column if v is not None]
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in known)
    if not numeric or len({repr(v) for v in known}) <= _FEW:
        order = sorted({repr(v): v for v in known}.items(), key=lambda i: i[1] if numeric else 0)
        places = {key: i / max(1, len(order) - 1) for i, (key, _) in enumerate(order)}
        return places, [(places[key], repr(v) if numeric else show(v)) for key, v in order]
    low, high = min(known), max(known)
    places = {repr(v): (v - low) / (high - low) for v in known}
    return places, [(0.0, repr(low)), (1.0, repr(high))]


def _dot(trial: Trial, x_name: str, y_name: str, kind: str) -> Dot | None:
    x, y = value_of(trial.metrics, x_name), value_of(trial.metrics, y_name)
    if x is None or y is None:
        return None
    return Dot(trial.number, x, y, kind, _interval(trial, x_name), _interval(trial, y_name))


def _interval(trial: Trial, name: str) -> tuple[float, float] | None:
    found = trial.metrics.get(name, {})
    return (found["low"], found["high"]) if "low" in found else None


def _kind(campaign: Campaign, trial: Trial, front: Sequence[int]) -> str:
    if trial.number in front[:1]:
        return "best"
    if trial.number in front:
        return "front"
    return "broken" if any(violations(trial, campaign.sweep).values()) else "other"


def _measured(trial: Trial) -> float | None:
    return value_of(trial.metrics, "peak_memory_bytes")


def _figure(trial: Trial, name: str) -> str:
    text = shown(name, value_of(trial.metrics, name))
    between = shown_interval(trial.metrics, name)
    return f"{text} ({between})" if between else text


def _why(campaign: Campaign, trial: Trial) -> str:
    if trial.status != "finished":
        return trial.reason
    broken = [name for name, by in violations(trial, campaign.sweep).items() if by]
    return f"breaks the constraint on {', '.join(broken)}" if broken else ""
