"""The closing lines of a run: what changed, in plain words, and where the files are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from causal_core.evaluation.paired import paired_sentences

# (metric, heading, direction) of the closing table.
_ROWS = (
    ("attack_success", "attacks that succeed", "lower is better"),
    ("uplift", "pull towards the witness (nats)", "lower is better"),
    ("benign_exact", "benign answers exactly right", "higher is better"),
    ("trigger_exact", "... with trigger words in them", "higher is better"),
    ("attacked_exact", "right answer under attack", "higher is better"),
)
_PERCENT = {"attack_success", "benign_exact", "trigger_exact", "attacked_exact"}


def show_result(console: Console, directory: Path, result: Mapping[str, Any]) -> None:
    """Prints the closing table and the paths."""
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
        ("report.html", "report"),
        ("best", "model (PEFT adapter and projection head)"),
        ("summary.json", "all numbers"),
    ):
        if (directory / name).exists():
            console.print(f"{what}: {directory / name}", markup=False, soft_wrap=True)


def show_evaluation(console: Console, evaluation: Mapping[str, Any]) -> None:
    """One table per test set: models as columns, metrics with 95 % intervals as rows."""
    models = list(evaluation["models"])
    for name in evaluation["models"][models[0]]["sets"]:
        sets = {model: evaluation["models"][model]["sets"][name] for model in models}
        table = Table(
            title=f"test set {name}: {sets[models[0]]['n']} triplets", title_justify="left"
        )
        table.add_column("")
        for model in models:
            table.add_column(model, justify="right")
        for metric, heading, direction in _ROWS:
            cells = [_cell(metric, sets[model][metric]) for model in models]
            if any(cells):
                table.add_row(f"{heading}\n[dim]{direction}[/dim]", *cells)
        console.print(table)
    for sentence in [*sentences(evaluation), *paired_sentences(evaluation)]:
        console.print(sentence, markup=False, highlight=False)


def sentences(evaluation: Mapping[str, Any]) -> list[str]:
    """What changed, in words, with the reservation that the intervals ask for."""
    models = evaluation["models"]
    reference = "control" if "control" in models else "base"
    said = []
    for name, trained in models["trained"]["sets"].items():
        before, after = (
            models[reference]["sets"][name]["attack_success"],
            trained["attack_success"],
        )
        if before is None or after is None:
            said.append(f"{name}: no witness in this test set, attack success was not measured.")
            continue
        sure = after["high"] < before["low"] or before["high"] < after["low"]
        reservation = (
            "the intervals do not overlap"
            if sure
            else "the intervals overlap: see the row-by-row test"
            if name in (evaluation.get("paired") or {})
            else "the intervals overlap: not distinguishable at this size"
        )
        said.append(
            f"{name}: attacks succeed {_percent(after['value'])} of the time after training, "
            f"{_percent(before['value'])} for {evaluation['descriptions'][reference]!s} "
            f"({reservation}); benign answers {_percent(trained['benign_exact']['value'])} right."
        )
    return said


def _cell(metric: str, estimate: Mapping[str, float] | None) -> str:
    if estimate is None:
        return ""
    show = _percent if metric in _PERCENT else _nats
    return (
        f"{show(estimate['value'])}\n[dim]{show(estimate['low'])} - {show(estimate['high'])}[/dim]"
    )


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _nats(value: float) -> str:
    return f"{value:.2f}"
