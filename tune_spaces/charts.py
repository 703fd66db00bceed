"""The figures of a sweep's report, in the style of a run's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from causal_core.evaluation.metrics import SHARE
from causal_core.report.charts import Chart, drawing, finished
from tune_spaces.objectives import OBJECTIVES

_COLOURS = {"best": "#D55E00", "front": "#0072B2", "other": "#999999", "broken": "#CC79A7"}
_MARKS = {"best": "*", "front": "o", "other": "o", "broken": "x"}
_SIZES = {"best": 150, "front": 45, "other": 25, "broken": 35}
_WORDS = {
    "best": "best by the first objective",
    "front": "on the Pareto front",
    "other": "another trial beats it",
    "broken": "breaks a constraint",
}


@dataclass(frozen=True)
class Dot:
    """A trial in a scatter plot."""

    number: int
    x: float
    y: float
    kind: str  # of _WORDS
    x_interval: tuple[float, float] | None = None
    y_interval: tuple[float, float] | None = None


def pareto_chart(dots: Sequence[Dot], x_name: str, y_name: str) -> Chart:
    """Two objectives of all finished trials, with 95 % intervals and numbers of trials."""
    with drawing():
        figure = Figure(figsize=(5.2, 3.9))
        axes = figure.add_subplot()
        for kind, words in _WORDS.items():
            chosen = [dot for dot in dots if dot.kind == kind]
            if not chosen:
                continue
            x, y = ([scaled(n, getattr(d, a)) for d in chosen]
                    for n, a in ((x_name, "x"), (y_name, "y")))  # fmt: skip
            axes.scatter(x, y, s=_SIZES[kind], c=_COLOURS[kind], marker=_MARKS[kind], label=words,
                         zorder=3)  # fmt: skip
            for dot, at_x, at_y in zip(chosen, x, y, strict=True):
                _intervals(axes, dot, x_name, y_name, at_x, at_y)
                axes.annotate(str(dot.number), (at_x, at_y), xytext=(5, 5), fontsize=8,
                              textcoords="offset points")  # fmt: skip
        axes.set_xlabel(_axis(x_name))
        axes.set_ylabel(_axis(y_name))
        axes.grid()
        figure.legend(loc="outside lower center", ncols=2)
        figure.set_layout_engine("constrained")
        words = "; ".join(f"trial {d.number}: {x_name} {d.x:.4g}, {y_name} {d.y:.4g}" for d in dots)
        return finished(
            figure,
            f"Scatter plot of {x_name} against {y_name}. {words}.",
            "Every finished trial by two figures measured on validation data. Lines are 95 % "
            "intervals: points whose intervals overlap are not told apart by this data.",
        )


def memory_chart(
    rows: Sequence[tuple[int, int, int]], budget: int | None, refused: Sequence[int]
) -> Chart:
    """Predicted against measured peak memory.

    Args:
        rows: Trial, predicted and measured bytes.
        budget: Bytes of a worker's device.
        refused: Predicted bytes of the refused points.
    """
    with drawing():
        figure = Figure(figsize=(5.2, 3.9))
        axes = figure.add_subplot()
        predicted = [p / 2**30 for _, p, _ in rows]
        measured = [m / 2**30 for _, _, m in rows]
        refused_gib = [size / 2**30 for size in refused]
        top = 1.1 * max([*predicted, *measured, *refused_gib, (budget or 0) / 2**30, 1e-3])
        axes.plot([0, top], [0, top], color="#666666", linewidth=0.8, label="as predicted")
        axes.scatter(predicted, measured, s=40, c="#0072B2", label="trained", zorder=3)
        for (number, _, _), x, y in zip(rows, predicted, measured, strict=True):
            axes.annotate(str(number), (x, y), xytext=(5, 3), fontsize=8,
                          textcoords="offset points")  # fmt: skip
        if refused_gib:
            axes.plot(refused_gib, [0.03 * top] * len(refused_gib), "x", color="#D55E00",
                      label="refused, never started")  # fmt: skip
        if budget is not None:
            axes.axvline(budget / 2**30, color="#D55E00", linestyle="--", label="budget")
        axes.set_xlim(0, top)
        axes.set_ylim(0, top)
        axes.set_xlabel("predicted peak (GiB)")
        axes.set_ylabel("measured peak (GiB)")
        axes.grid()
        figure.legend(loc="outside lower center", ncols=2)
        figure.set_layout_engine("constrained")
        words = "; ".join(f"trial {n}: predicted {p}, measured {m} bytes" for n, p, m in rows)
        return finished(
            figure,
            f"Scatter plot of predicted and measured peak memory. {words}.",
            "Points on the line needed what was planned, points below it less. Trials that were "
            "stopped early count with what they had reached.",
        )


def importance_chart(importance: Mapping[str, float], objective: str) -> Chart:
    """Share of an objective's spread that each dimension explains."""
    names = list(importance)[::-1]
    with drawing():
        figure = Figure(figsize=(5.2, 0.9 + 0.34 * len(names)))
        axes = figure.add_subplot()
        axes.barh(names, [importance[n] for n in names], color="#0072B2", height=0.6)
        for place, name in enumerate(names):
            axes.annotate(SHARE.text(importance[name], 0), (importance[name], place), xytext=(3, 0),
                          textcoords="offset points", va="center", fontsize=8)  # fmt: skip
        axes.set_xlim(0, 1.08)
        axes.tick_params(axis="y", length=0)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        axes.set_title(f"what moves: {OBJECTIVES[objective].metric.title}")
        figure.set_layout_engine("constrained")
        words = "; ".join(f"{n} {SHARE.text(v, 0)}" for n, v in importance.items())
        return finished(
            figure,
            f"Bar chart of parameter importance for {objective}: {words}.",
            "PED-ANOVA (Watanabe et al., 2023) over the finished trials: with few of them a hint, "
            "not a finding.",
        )


def parallel_chart(
    rows: Sequence[tuple[int, Sequence[float | None], str]],
    axes_names: Sequence[str],
    ticks: Sequence[Sequence[tuple[float, str]]],
) -> Chart:
    """Every trial as a line through its values.

    Args:
        rows: Trial, position on each axis in [0, 1] (None: it has no value there), kind.
        axes_names: Names of the axes.
        ticks: Labels on each axis by position.
    """
    with drawing():
        figure = Figure(figsize=(5.2, 3.9))
        axes = figure.add_subplot()
        places = range(len(axes_names))
        for number, positions, kind in sorted(rows, key=lambda r: r[2] in ("best", "front")):
            known = [math.nan if p is None else p for p in positions]
            strong = kind in ("best", "front")
            axes.plot(
                places, known, color=_COLOURS[kind], linewidth=2.0 if strong else 0.9,
                marker="o", markersize=3, alpha=1.0 if strong else 0.6, zorder=3 if strong else 2,
            )  # fmt: skip
            if known and not math.isnan(known[-1]):
                axes.annotate(str(number), (len(known) - 1, known[-1]), xytext=(6, -3),
                              textcoords="offset points", fontsize=7)  # fmt: skip
        for place, labels in zip(places, ticks, strict=True):
            axes.axvline(place, color="#bbbbbb", linewidth=0.8, zorder=1)
            for position, label in labels:
                axes.annotate(label, (place, position), xytext=(-3, 2), ha="right", fontsize=6,
                              color="#444444", textcoords="offset points")  # fmt: skip
        names = [name.replace(".", ".\n", 1).replace("_", "_\n") for name in axes_names]
        axes.set_xticks(places, names, fontsize=7)
        axes.set_xlim(-0.6, len(axes_names) - 0.7)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.spines["bottom"].set_visible(False)
        figure.set_layout_engine("constrained")
        return finished(
            figure,
            "Parallel coordinates of the trials; the table has the same numbers.",
            "One line per trial, one axis per dimension, the objective on the right. Orange: best; "
            "blue: on the Pareto front.",
        )


def scaled(name: str, value: float) -> float:
    """A figure in the unit its axis shows."""
    return value * OBJECTIVES[name].metric.unit.scale


def _axis(name: str) -> str:
    metric = OBJECTIVES[name].metric
    return f"{metric.title} ({metric.unit.name}; {metric.direction})"


def _intervals(axes: Any, dot: Dot, x_name: str, y_name: str, at_x: float, at_y: float) -> None:
    style = {"color": "#999999", "linewidth": 0.7, "zorder": 2}
    if dot.x_interval is not None:
        axes.plot([scaled(x_name, v) for v in dot.x_interval], [at_y, at_y], **style)
    if dot.y_interval is not None:
        axes.plot([at_x, at_x], [scaled(y_name, v) for v in dot.y_interval], **style)
