"""What a run came to, on the terminal: the table, the verdict in words, and where the files are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from causal_core.evaluation.metrics import BEHAVIOUR, SHARE, TRAINED, Unit, ordered_sets
from causal_core.evaluation.statistics import read_estimate
from causal_core.files import BEST, SUMMARY
from causal_core.report.run_report import REPORT
from causal_core.report.verdict import Verdict, verdict_of
from causal_core.report.wording import interval
from ray_jobs.console.plain import plain


def show_result(console: Console, directory: Path, result: Mapping[str, Any]) -> None:
    """Prints the evaluation, the run in one line, and the paths."""
    evaluation = result["evaluation"]
    if evaluation:
        show_evaluation(console, evaluation)
    run = result["run"]
    console.print(
        f"{run['steps']} of {run['planned_steps']} optimizer steps, {run['samples']:,} triplets, "
        f"{run['skipped_steps']} skipped, {run['seconds']:.0f} s.",
        markup=False,
        highlight=False,
    )
    for name, what in (
        (REPORT, "report"),
        (BEST, "model (PEFT adapter and projection head)"),
        (SUMMARY, "all numbers"),
    ):
        if (directory / name).exists():
            console.print(plain(f"{what}: {directory / name}"), soft_wrap=True)


def show_evaluation(console: Console, evaluation: Mapping[str, Any]) -> None:
    """One table per test set (models as columns, metrics with 95 % intervals as rows) and the
    verdict of the report."""
    models = list(evaluation["models"])
    by_model = {model: evaluation["models"][model].get("sets") or {} for model in models}
    own = TRAINED if TRAINED in by_model else models[0]
    for name in ordered_sets(by_model[own]):
        sets = {model: found.get(name) or {} for model, found in by_model.items()}
        title = plain(f"test set {name}: {sets[own].get('n', '?')} triplets")
        table = Table(title=title, title_justify="left")
        table.add_column("")
        for model in models:
            table.add_column(plain(model), justify="right")
        for metric in BEHAVIOUR:
            cells = [_cell(sets[model].get(metric.key), metric.unit) for model in models]
            if any(cells):
                unit = "" if metric.unit is SHARE else f" ({metric.unit.name})"
                table.add_row(f"{metric.title}{unit}\n[dim]{metric.direction}[/dim]", *cells)
        console.print(table)
        if left := left_out({model: found.get("own_is_attacked") for model, found in sets.items()}):
            console.print(plain(left), soft_wrap=True)
    for line in lines_of(verdict_of(evaluation)):
        console.print(plain(line))


def left_out(counts: Mapping[str, object]) -> str:
    """How many attacks the margin of a model's own answer leaves out; empty where none."""
    found = {model: n for model, n in counts.items() if isinstance(n, int) and n > 0}
    if not found:
        return ""
    told = ", ".join(f"{model} {n}" for model, n in found.items())
    return (
        "Attacks that the margin of the model's own answer leaves out, as that answer is what they "
        f"want or holds their witness: {told}"
    )


def lines_of(verdict: Verdict) -> list[str]:
    """The verdict in words; the numbers behind its points stand in the table."""
    lines = [f"{verdict.label}. {verdict.headline}"]
    for judged in verdict.sets:
        lines.append(f"Set {judged.name}:")
        lines += [f"- {point.conclusion}." for point in judged.points]
        lines += [f"- {judged.row_by_row}"] if judged.row_by_row else []
    return [*lines, *verdict.caveats]


def _cell(raw: object, unit: Unit) -> str:
    estimate = read_estimate(raw)
    if estimate is None:
        return ""
    return f"{unit.text(estimate.value)}\n[dim]{interval(estimate, unit)}[/dim]"
