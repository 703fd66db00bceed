"""What the report shows of the training: loss, validation, learning rate, speed and memory.

All of it is read from the records of `metrics.jsonl` and `performance.jsonl`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from causal_core.evaluation.metrics import METRIC, SEPARABILITY, SHARE

if TYPE_CHECKING:  # matplotlib loads when a chart is drawn
    from causal_core.report.charts import Chart

Records = Sequence[Mapping[str, Any]]

_TERM = "loss_"  # what the name of a term begins with in metrics.jsonl
_COLLAPSED_RANK = 2.0  # below this the representations span hardly more than one direction


def _series(records: Records, key: str) -> tuple[list[float], list[float | None]]:
    """Steps, and the values there; what is no number is no value."""
    held = [r for r in records if isinstance(r.get(key), int | float | None) and key in r]
    return [r["step"] for r in held], [r[key] for r in held]


def loss_charts(train: Records, config: Mapping[str, Any]) -> list[Chart]:
    """Total loss, weighted terms and learning rate over the run."""
    from causal_core.report.charts import Line, line_chart, running_mean

    if not train:
        return []
    window = max(1, len(train) // 30)
    smoothed = f" Lines are means over {window} steps." if window > 1 else ""
    skipped = [r["step"] for r in train if r.get("skipped")]
    steps, loss = _series(train, "loss")
    total = Line(f"mean of {window}" if window > 1 else "loss", steps, running_mean(loss, window))
    faint = Line("every step", steps, loss) if window > 1 else None
    weights = config.get("loss") or {}
    terms = []
    for key in dict.fromkeys(key for record in train for key in record if key.startswith(_TERM)):
        x, y = _series(train, key)
        term = key.removeprefix(_TERM)
        weight = weights.get(f"lambda_{term}")
        weight = weight if isinstance(weight, int | float) else None
        if y and weight != 0:  # a term of weight 0 adds nothing to the loss
            factor = 1.0 if weight is None else float(weight)
            name = f"{term} (weight unknown)" if weight is None else f"{weight:g} × {term}"
            values = [m * factor for m in running_mean(y, window)]
            terms.append(Line(name, x, values))
    charts = [line_chart("Total loss", [total], "The loss of every optimizer step." + smoothed,
                         faint=faint, crosses=skipped)]  # fmt: skip
    if terms:
        charts.append(
            line_chart("Weighted loss terms", terms, "What each term adds to the loss." + smoothed)
        )
    for key, title, caption in (
        ("learning_rate", "Learning rate", "The rate each optimizer step used."),
        ("grad_norm", "Gradient norm", "Before clipping."),
    ):
        x, y = _series(train, key)
        if y:
            charts.append(line_chart(title, [Line(title.lower(), x, y)], caption))
    return charts


def validation_charts(validation: Records, best_step: object) -> list[Chart]:
    """What the validations saw, with the best step marked."""
    from causal_core.report.charts import Line, line_chart

    mark = ("best step", float(best_step)) if isinstance(best_step, int) else None
    charts = []
    for title, keys, caption in (
        (METRIC["uplift"].title, ("uplift",), "Nats; nearer to 0 means that attacks pull less."),
        ("Negative log-likelihood", ("benign_nll", "attacked_nll"),
         "Of the expected answer, in nats per token; lower is better."),
        ("Causal metrics", [metric.key for metric in SEPARABILITY],
         "Separability of representations, not behaviour."),
        (METRIC["effective_rank"].title, ("effective_rank",), METRIC["effective_rank"].meaning),
    ):  # fmt: skip
        lines = [Line(METRIC[key].title, *_series(validation, key)) for key in keys]
        if lines := [line for line in lines if line.y]:
            charts.append(line_chart(title, lines, caption, mark=mark))
    return charts


def collapse(validation: Records) -> str:
    """A warning where the last validation saw collapsed representations, else nothing."""
    _, ranks = _series(validation, "effective_rank")
    if not ranks or not isinstance(ranks[-1], int | float) or ranks[-1] >= _COLLAPSED_RANK:
        return ""
    return (
        f"The effective rank at the last validation is {ranks[-1]:.2f}: the representations have "
        "collapsed onto about one direction, so a high causal stability says nothing."
    )


def speed(performance: Records) -> list[tuple[str, str]]:
    """Medians over steps, which the slow first step does not distort."""
    rows = []
    for key, title, shown in (
        ("seconds", "Seconds per step", "{:.2f}".format),
        ("triplets_per_second", "Triplets per second", "{:.2f}".format),
        ("nodes_per_second", "Tree nodes per second", "{:,.0f}".format),
        ("sharing", "Tokens that a computed node stands for (sharing)", "{:.2f}".format),
        ("padding", "Share of computed positions that are padding", SHARE.text),
    ):
        _, values = _series(performance, key)
        finite = [x for x in values if isinstance(x, int | float) and math.isfinite(x)]
        if finite:
            rows.append((title, shown(statistics.median(finite))))
    return rows


def speed_charts(performance: Records) -> list[Chart]:
    """Speed and peak memory over the run."""
    from causal_core.report.charts import Line, line_chart

    charts = []
    x, y = _series(performance, "triplets_per_second")
    if y:
        charts.append(line_chart("Triplets per second", [Line("triplets per second", x, y)],
                                 "Higher is faster."))  # fmt: skip
    x, y = _series(performance, "peak_memory_bytes")
    gibibytes = [b / 2**30 if isinstance(b, int | float) else None for b in y]
    if any(gibibytes):
        charts.append(line_chart("Peak memory (GiB)", [Line("peak memory", x, gibibytes)],
                                 "Flat means that nothing leaks over the epochs."))  # fmt: skip
    return charts
