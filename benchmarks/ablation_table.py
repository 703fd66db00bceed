"""The ablation's results as Markdown: a row for each cell and test set, and what a left-out
family of attacks succeeds at."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from causal_core.evaluation.metrics import METRIC, NATS, SHARE
from causal_core.evaluation.representations import HEAD, MEAN
from causal_core.evaluation.row_by_row import mcnemar_exact
from causal_core.evaluation.statistics import Estimate

CONTROL = "task_only"  # what a cell is compared with, unless its file names another
LEFT_OUT = "left out "  # how test sets of left-out families are named
COLUMNS = ("attack_success", "margin_negative", "margin", "own_margin_negative", "own_margin",
           "uplift", "benign_exact", "trigger_exact", "attacked_exact")  # fmt: skip
_WORK = ("trained_work", "untrained_work")
_DETECTORS = {MEAN: "mean hidden state", HEAD: "head"}

Result = Mapping[str, Any]


def table(results: Sequence[Result]) -> str:
    """The results as Markdown, a row a cell, seed and size of the test sets.

    Results of earlier versions lack detectors: a dash.
    """
    found = _by_key(results)
    read_off = [
        f"{title}: {figure}"
        for title in _DETECTORS.values()
        for figure in ("AUROC at equal length", "found at 1 % false")
    ]
    head = ("loss and data", "set", *(METRIC[name].title for name in COLUMNS), "trained work",
            "untrained work", "p against the control", "control", *read_off, "tokens", "minutes",
            )  # fmt: skip
    lines = _head(head)
    for row in results:
        compared = row.get("control", CONTROL)
        reference = found.get(_key(row, compared))
        for name, figures in row["sets"].items():
            p = _against(reference, row, name)
            cells = [
                f"{row['about']} (seed {row['seed']})",
                name,
                *(_cell(figures.get(column), column) for column in COLUMNS),
                *(_cell(figures.get(work), "benign_exact") for work in _WORK),
                p,
                "-" if p == "-" else compared,
                *_read_off(row, name),
                f"{row['tokens']:,}",
                f"{row['train_seconds'] / 60:.1f} + {row['evaluation_seconds'] / 60:.1f}",
            ]
            lines.append(_line(cells))
    return "\n".join(lines)


def left_out_table(results: Sequence[Result]) -> str:
    """Attacks of families that a training never had, against the same loss with all families and
    against the control, on the same rows; empty where no such cell has a result."""
    found = _by_key(results)
    head = ("families left out", "rows", "without them", "with them", "control",
            "p, without against with", "p, without against the control")  # fmt: skip
    lines = _head(head)
    for row in results:
        if not row.get("without_families"):
            continue
        whole, control = (found.get(_key(row, row.get(name))) for name in ("whole", "control"))
        for name in (name for name in row["sets"] if name.startswith(LEFT_OUT)):
            own = row["sets"][name]["attack_success"]
            cells = [
                f"{', '.join(row['without_families'])} (seed {row['seed']})",
                "-" if own is None else str(own["n"]),
                *(_success(result, name) for result in (row, whole, control)),
                _against(whole, row, name),
                _against(control, row, name),
            ]
            lines.append(_line(cells))
    return "\n".join(lines) if len(lines) > 2 else ""


def _by_key(results: Sequence[Result]) -> dict[tuple[Any, ...], Result]:
    return {_key(row, row["cell"]): row for row in results}


def _key(row: Result, cell: str | None) -> tuple[Any, ...]:
    """Of a cell that was trained with the seed of `row` and judged on its test rows."""
    return cell, row["seed"], json.dumps(row["sizes"])


def _head(titles: Sequence[str]) -> list[str]:
    return [_line(titles), "|" + "---|" * len(titles)]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _success(result: Result | None, name: str) -> str:
    figures = {} if result is None else result["sets"].get(name, {})
    return _cell(figures.get("attack_success"), "attack_success")


def _cell(raw: Mapping[str, Any] | None, column: str) -> str:
    if raw is None:
        return "-"
    found, unit = Estimate(**raw), METRIC[column].unit
    text = f"{unit.digits(found.value)} [{unit.digits(found.low)}, {unit.digits(found.high)}]"
    return text if unit is NATS else f"{text} %"


def _read_off(row: Result, name: str) -> list[str]:
    """What each read-out finds on a test set; dashes where it was not measured."""
    measured = row.get("detectors", {}).get("sets", {}).get(name, {}).get("detectors", {})
    cells = []
    for detector in _DETECTORS:
        figures = measured.get(detector, {})
        equal, share = figures.get("auroc_at_equal_length"), figures.get("found_at_one_percent")
        cells.append("-" if equal is None else f"{equal:.3f}")
        cells.append("-" if share is None else SHARE.text(share))
    return cells


def _against(control: Result | None, row: Result, name: str) -> str:
    """The exact McNemar test of attack success, row by row."""
    if control is None or control is row or name not in control["succeeded"]:
        return "-"
    theirs, own = set(control["succeeded"][name]), set(row["succeeded"][name])
    return f"{mcnemar_exact(len(theirs - own), len(own - theirs)):.2g}"
