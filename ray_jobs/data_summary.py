"""What data files hold, in words and numbers: what `causal data check` and `generate` print.

Texts from data files are hostile by nature: they are shown as plain `Text`, escaped, never as
markup.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ray_jobs.console.plain import plain

if TYPE_CHECKING:  # heavy imports wait until a command runs, so that --help is quick
    import pyarrow as pa

    from causal_core.data.leaks import LeakReport
    from causal_core.data.lint.report import LintReport
    from causal_core.data.problems import Problems
    from causal_core.data.reader import ReadResult
    from causal_core.data.schema import Triplet

_PROBLEMS_SHOWN = 20
_VALUES_SHOWN = 30  # of a column; a hostile file may have another family in every row
_UNSPLIT = "unsplit"


def by_split(table: pa.Table) -> dict[str, pa.Table]:
    import pyarrow.compute as pc

    column = table["split"].fill_null(_UNSPLIT)
    return {name: table.filter(pc.equal(column, name)) for name in column.unique().to_pylist()}


def _injections(table: pa.Table, field: str) -> pa.ChunkedArray:
    """A field of all injections of all rows."""
    import pyarrow.compute as pc

    return pc.struct_field(pc.list_flatten(table["injections"]), field)


def _with_witness(table: pa.Table) -> int:
    witnesses = _injections(table, "witness")
    return int(witnesses.length() - witnesses.null_count)


def _column(table: pa.Table, name: str) -> pa.ChunkedArray:
    return table[name] if name in table.column_names else _injections(table, name)


def _counts(table: pa.Table, column: str) -> dict[str, int]:
    """Rows (or injections) per value, most frequent first; those without a value under `-`."""
    counts = _column(table, column).fill_null("-").value_counts().to_pylist()
    ordered = sorted(counts, key=lambda item: (-item["counts"], item["values"]))
    return {item["values"]: item["counts"] for item in ordered}


_LENGTHS = ("system_instruction", "benign_input", "benign_output", "injection_input")


def _lengths(table: pa.Table, column: str) -> dict[str, float]:
    """Length of a text column in characters."""
    import pyarrow.compute as pc

    lengths = pc.utf8_length(_column(table, column))
    if not len(lengths):
        return dict.fromkeys(("median", "p95", "max"), 0.0)
    median, high = pc.quantile(lengths, q=[0.5, 0.95]).to_pylist()
    return {"median": median, "p95": high, "max": pc.max(lengths).as_py()}


def summary(
    result: ReadResult, report: LeakReport | None, notes: LintReport | None, usable: bool
) -> dict[str, Any]:
    table = result.table
    return {
        "ok": usable,
        "rows": table.num_rows,
        "splits": _counts(table, "split"),
        "attack_families": _counts(table, "attack_family"),
        "injections": _injections(table, "attack_family").length(),
        "tasks": _counts(table, "task"),
        "with_witness": _with_witness(table),
        "characters": {name: _lengths(table, name) for name in _LENGTHS} if table.num_rows else {},
        "bad_rows": result.bad_rows,
        "error_count": result.found_errors.count,  # of which the first are listed
        "errors": [vars(problem) for problem in result.errors],
        "warning_count": result.found_warnings.count,
        "warnings": [vars(problem) for problem in result.warnings],
        "leaks": report.to_dict() if report is not None else None,
        "lint": notes.to_dict() if notes is not None else None,
    }


def _one_line(value: object, limit: int = 60) -> str:
    """A value from a file, safe to print: as it is if short and printable, else escaped."""
    from causal_core.visible_text import quoted

    text = str(value)
    return text if text.isprintable() and len(text) <= limit else quoted(text, limit)


def show_check(result: ReadResult, report: LeakReport | None, notes: LintReport | None) -> None:
    from rich.table import Table

    console, table = Console(), result.table
    console.print(
        f"{table.num_rows:,} good rows, {result.found_errors.count:,} problems", highlight=False
    )
    if table.num_rows:
        grid = Table("what", "value", "rows", box=None, pad_edge=False)
        for title, column in (("split", "split"), ("family", "attack_family"), ("task", "task")):
            counts = _counts(table, column)
            for value, count in itertools.islice(counts.items(), _VALUES_SHOWN):
                grid.add_row(title, plain(_one_line(value)), f"{count:,}")
            if len(counts) > _VALUES_SHOWN:
                grid.add_row(title, f"... {len(counts):,} in all", "")
        witnesses, injections = _with_witness(table), _injections(table, "witness").length()
        share = f"{witnesses / max(1, injections):.0%} of {injections:,} injections"
        grid.add_row("witness", share, f"{witnesses:,}")
        console.print(grid)
        sizes = Table("characters", "median", "95 %", "max", box=None, pad_edge=False)
        for name in _LENGTHS:
            found = _lengths(table, name)
            sizes.add_row(name, *(f"{found[key]:,.0f}" for key in ("median", "p95", "max")))
        console.print(sizes)
    _show_problems(console, "error", result.found_errors)
    _show_problems(console, "warning", result.found_warnings)
    if report is not None:
        show_leaks(console, report)
        if report.ok:
            console.print(plain(f"no leaks between {', '.join(report.splits)}"))
    if notes is not None:
        _show_notes(console, notes)


def show_leaks(console: Console, report: LeakReport) -> None:
    for leak in report.findings:
        where = f"{leak.split_a} and {leak.split_b} share {leak.count:,} {leak.kind}"
        line = f"leak: {where}, such as {_one_line(leak.examples[0], 80)}"
        console.print(plain(line), soft_wrap=True)


def leaks_of(table: pa.Table) -> LeakReport | None:
    """What the splits of a table share; None where it has one split alone."""
    from causal_core.data.leaks import check_leaks

    splits = by_split(table)
    return check_leaks(splits) if len(splits) > 1 else None


def _show_notes(console: Console, notes: LintReport) -> None:
    for found in notes.findings:
        where = ", ".join(found.splits)
        line = f"note: {where}: {found.count:,} of {found.of:,}: {found.text}"
        console.print(plain(line), soft_wrap=True)
        for example in found.examples:
            console.print(plain(f"      {_one_line(example, 120)}"), soft_wrap=True)


def _show_problems(console: Console, title: str, problems: Problems) -> None:
    from causal_core.data.schema import summarised

    lines = summarised(problems.kept)
    for line in lines[:_PROBLEMS_SHOWN]:
        console.print(plain(f"{title}: {line}"), soft_wrap=True)
    if problems.count > len(problems.kept) or len(lines) > _PROBLEMS_SHOWN:
        console.print(f"... {problems.count:,} {title}s in all", highlight=False)


def families(rows: list[Triplet]) -> list[str]:
    return sorted({injection.attack_family for row in rows for injection in row.injections})


def show_generated(dataset: dict[str, list[Triplet]], out_dir: Path) -> None:
    from rich.table import Table

    console = Console()
    grid = Table("split", "rows", "system prompts", "attack families", box=None, pad_edge=False)
    for split, rows in dataset.items():
        names = families(rows)
        prompts = len({row.system_instruction for row in rows})
        grid.add_row(split, f"{len(rows):,}", f"{prompts:,}", ", ".join(names))
    console.print(grid)
    for split in ("train", "test_novel"):
        _show_triplet(console, split, dataset[split][0])
    console.print(plain(f"No leaks between the splits. Written to {out_dir}"))


def _show_triplet(console: Console, split: str, triplet: Triplet) -> None:
    from rich.table import Table

    lines = Table(box=None, pad_edge=False, show_header=False, title=split, title_justify="left")
    for title, text in (
        ("system", triplet.system_instruction),
        ("benign", triplet.benign_input),
        ("answer", triplet.benign_output),
        *(
            line
            for injection in triplet.injections
            for line in (
                (injection.attack_family, injection.injection_input),
                ("witness", injection.witness or "-"),
            )
        ),
    ):
        lines.add_row(plain(title, "bold"), plain(_one_line(text, 400)))
    console.print(lines)
