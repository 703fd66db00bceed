"""The report's figures: matplotlib drawings as SVG data URIs.

An SVG inside an `<img>` can neither run scripts nor clash with the page's styles or ids, and its
letters are drawn as paths, so it looks the same everywhere. Importing this module loads
matplotlib; `run_report` does so only when it draws.
"""

from __future__ import annotations

import base64
import contextlib
import io
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from causal_core.evaluation.metrics import SHARE
from causal_core.evaluation.statistics import Estimate, has_interval
from causal_core.visible_text import visible

# Okabe and Ito's palette: distinguishable with every common colour blindness.
_MODEL_COLOURS = {"base": "#999999", "control": "#E69F00", "trained": "#0072B2"}
_LINE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
_DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_MOST_POINTS = 800  # of a line: more cannot be told apart at this width
_MOST_GROUPS = 40  # of a bar chart
_STYLE = {
    "svg.fonttype": "path",
    "svg.hashsalt": "causal-ray",  # the same data gives the same bytes
    "text.parse_math": False,  # labels are data: a dollar sign is a dollar sign
    "font.size": 9,
    "font.family": ["DejaVu Sans"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
}


@dataclass(frozen=True)
class Chart:
    """A picture, its words for those who cannot see it, and a line to print under it."""

    uri: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Line:
    """One line of a line chart; None and non-finite values leave a gap."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]


@dataclass(frozen=True)
class Group:
    """The bars of one attack family: an estimate by model."""

    label: str
    bars: Mapping[str, Estimate]


@dataclass(frozen=True)
class Curve:
    """One model's proportion at each level of an effort."""

    model: str
    points: Mapping[int, Estimate]


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """The style of all figures, for the `with` block that draws one."""
    with matplotlib.rc_context(_STYLE):
        yield


def finished(figure: Figure, alt: str, caption: str) -> Chart:
    """A drawn figure as a picture for a page (within `drawing`)."""
    return Chart(_uri(figure), alt, caption)


def bar_chart(title: str, groups: Sequence[Group], models: Sequence[str], caption: str) -> Chart:
    """Horizontal grouped bars of proportions with their intervals, one group per family.

    There may be as many families as rows: those that can be told apart are drawn.
    """
    if len(groups) > _MOST_GROUPS:
        caption += f" The first {_MOST_GROUPS} of {len(groups):,} are drawn; the table has all."
        groups = groups[:_MOST_GROUPS]
    thickness = 0.8 / len(models)
    with drawing():
        figure = Figure(figsize=(5.4, 1.0 + len(groups) * (0.16 + 0.17 * len(models))))
        axes = figure.add_subplot()
        for place, model in enumerate(models):
            rows = [(i, g.bars[model]) for i, g in enumerate(groups) if model in g.bars]
            offset = (place - (len(models) - 1) / 2) * thickness
            y = [i + offset for i, _ in rows]
            axes.barh(
                y, [e.value for _, e in rows], height=thickness * 0.88,
                color=_model_colour(model, place), label=_label(model),
            )  # fmt: skip
            for at, (_, estimate) in zip(y, rows, strict=True):
                _whisker(axes, at, estimate)
        axes.set_yticks(range(len(groups)), [_label(g.label) for g in groups])
        axes.set_ylim(len(groups) - 0.45, -0.55)  # the first group on top
        axes.tick_params(axis="y", length=0)
        axes.set_xlim(0, 1.0)
        ticks = [0, 0.25, 0.5, 0.75, 1.0]
        axes.set_xticks(ticks, [SHARE.text(t, 0) for t in ticks])
        axes.grid(axis="x")
        figure.suptitle(_label(title, 80), x=0.01, ha="left", fontsize=10)
        figure.legend(
            loc="outside lower center", ncols=len(models), handlelength=1.2, columnspacing=1.5
        )
        figure.set_layout_engine("constrained")
        return finished(figure, _bars_in_words(title, groups), caption)


def line_chart(
    title: str,
    lines: Sequence[Line],
    caption: str,
    *,
    faint: Line | None = None,
    mark: tuple[str, float] | None = None,
    crosses: Sequence[float] = (),
) -> Chart:
    """Lines over optimizer steps; the value axis always shows 0.

    Args:
        faint: Drawn thin and grey behind the lines (the values they smooth).
        mark: A labelled vertical line, such as the best step.
        crosses: Steps marked on the axis, such as skipped ones.
    """
    with drawing():
        figure = Figure(figsize=(4.6, 2.7))
        axes = figure.add_subplot()
        if faint is not None:
            axes.plot(*_thinned(faint), color="#999999", linewidth=0.7, label=_label(faint.label))
        for place, line in enumerate(lines):
            x, y = _thinned(line)
            axes.plot(
                x, y, label=_label(line.label), linewidth=1.7,
                color=_LINE_COLOURS[place % len(_LINE_COLOURS)],
                linestyle=_DASHES[place % len(_DASHES)],
                marker="o" if len(x) <= 12 else None, markersize=3.5,
            )  # fmt: skip
        if mark is not None:
            axes.axvline(mark[1], color="#666666", linewidth=1, linestyle=":", label=mark[0])
        if crosses:
            axes.plot(
                list(crosses), [0.02] * len(crosses), "x", color="#D55E00", clip_on=False,
                transform=axes.get_xaxis_transform(), label="skipped step",
            )  # fmt: skip
        low, high = axes.get_ylim()
        axes.set_ylim(min(0.0, low), max(0.0, high))  # a small change should look small
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 5))
        axes.set_title(_label(title, 60))
        axes.set_xlabel("optimizer step")
        axes.grid(axis="y")
        handles, labels = axes.get_legend_handles_labels()
        if len(labels) > 1:
            figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)))
        figure.set_layout_engine("constrained")
        return finished(figure, _lines_in_words(title, lines), caption)


def curve_chart(title: str, curves: Sequence[Curve], unit: str, caption: str) -> Chart:
    """Proportions with their intervals over levels, which are drawn at equal distances."""
    levels = sorted({level for curve in curves for level in curve.points})
    with drawing():
        figure = Figure(figsize=(4.6, 2.9))
        axes = figure.add_subplot()
        for place, curve in enumerate(curves):
            x = [levels.index(level) for level in sorted(curve.points)]
            found = [curve.points[level] for level in sorted(curve.points)]
            colour = _model_colour(curve.model, place)
            axes.fill_between(
                x, [e.low for e in found], [e.high for e in found], color=colour, alpha=0.12,
                linewidth=0,
            )  # fmt: skip
            axes.plot(
                x, [e.value for e in found], label=_label(curve.model), color=colour,
                linewidth=1.7, marker="o", markersize=3.5,
            )  # fmt: skip
        axes.set_xticks(range(len(levels)), [str(level) for level in levels])
        axes.set_ylim(-0.02, 1.02)
        ticks = [0, 0.25, 0.5, 0.75, 1.0]
        axes.set_yticks(ticks, [SHARE.text(t, 0) for t in ticks])
        axes.set_title(_label(title, 60))
        axes.set_xlabel(_label(unit))
        axes.grid(axis="y")
        figure.legend(loc="outside lower center", ncols=max(1, min(4, len(curves))))
        figure.set_layout_engine("constrained")
        words = "; ".join(
            f"{_label(c.model)} "
            + ", ".join(f"{SHARE.text(c.points[x].value, 0)} at {x}" for x in sorted(c.points))
            for c in curves
        )
        return finished(figure, f"Line chart. {_label(title, 80)}: {words}.", caption)


def running_mean(values: Sequence[float | None], window: int) -> list[float]:
    """Mean of each value and the `window - 1` before it; gaps are left out of the mean."""
    array = np.array([math.nan if v is None else v for v in map(_finite, values)])
    known = ~np.isnan(array)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, array, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    end = np.arange(1, len(array) + 1)
    begin = np.maximum(0, end - window)
    count = counts[end] - counts[begin]
    means = (sums[end] - sums[begin]) / np.maximum(count, 1)
    return [float(m) if c else math.nan for m, c in zip(means, count, strict=True)]


def _whisker(axes: Any, at: float, estimate: Estimate) -> None:
    end = estimate.value
    if has_interval(estimate):
        end = estimate.high
        error = [[max(0.0, estimate.value - estimate.low)], [max(0.0, end - estimate.value)]]
        axes.errorbar(
            estimate.value, at, xerr=error, fmt="none", ecolor="#222222", elinewidth=0.9, capsize=2
        )
    # Beyond the whisker, or inside the right edge where it would leave the figure.
    axes.annotate(
        SHARE.text(estimate.value, 0), (min(end, 1.0), at), xytext=(3, 0),
        textcoords="offset points", va="center", fontsize=7, color="#222222", annotation_clip=False,
    )  # fmt: skip


def _thinned(line: Line) -> tuple[list[float], list[float]]:
    """At most _MOST_POINTS points: means over equal runs of the line."""
    values = [math.nan if v is None else v for v in map(_finite, line.y)]
    width = math.ceil(len(values) / _MOST_POINTS)
    if width <= 1:
        return list(line.x), values
    x, y = [], []
    for start in range(0, len(values), width):
        run = [v for v in values[start : start + width] if not math.isnan(v)]
        x.append(line.x[min(start + width // 2, len(values) - 1)])
        y.append(sum(run) / len(run) if run else math.nan)
    return x, y


def _finite(value: float | None) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _model_colour(model: str, place: int) -> str:
    return _MODEL_COLOURS.get(model, _LINE_COLOURS[(place + 1) % len(_LINE_COLOURS)])


def _label(text: str, width: int = 30) -> str:
    """Names come from data files: on one line, of bounded length, nothing hidden."""
    label = visible(" ".join(text.split())) or "(no name)"
    return label if len(label) <= width else label[: width - 1] + "…"


def _bars_in_words(title: str, groups: Sequence[Group]) -> str:
    parts = [
        f"{_label(g.label)}: " + ", ".join(f"{_label(m)} {SHARE.text(e.value, 0)}"
                                           for m, e in g.bars.items())
        for g in groups
    ]  # fmt: skip
    return f"Bar chart. {title}. " + "; ".join(parts) + "."


def _lines_in_words(title: str, lines: Sequence[Line]) -> str:
    parts = []
    for line in lines:
        values = [v for v in map(_finite, line.y) if v is not None]
        if values:
            parts.append(f"{_label(line.label)} from {values[0]:.3g} to {values[-1]:.3g}")
    return f"Line chart over optimizer steps. {title}: " + "; ".join(parts) + "."


def _uri(figure: Figure) -> str:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A family named in a script the bundled font lacks is drawn as boxes; the tables have it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(
            buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
