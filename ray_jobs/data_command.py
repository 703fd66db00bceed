"""`causal data`: generate, check and convert training data. Says what it finds, changes no input.

Texts from data files are hostile by nature: they are shown as plain `Text`, escaped, never as
markup.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from causal_core.files import is_remote
from ray_jobs.console.plain import plain, printable

if TYPE_CHECKING:  # heavy imports wait until a command runs, so that --help is quick
    import pyarrow as pa
    from rich.console import Console

    from causal_core.data.leaks import LeakReport
    from causal_core.data.problems import Problems
    from causal_core.data.reader import ReadResult
    from causal_core.data.schema import Triplet

data_app = typer.Typer(
    help="Generate, check and convert training data.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_PROBLEMS_SHOWN = 20
_VALUES_SHOWN = 30  # of a column; a hostile file may have another family in every row
_MOST_ROWS = 10**6
_UNSPLIT = "unsplit"


class Format(StrEnum):
    """How data files are written."""

    JSONL = "jsonl"
    PARQUET = "parquet"


_Files = Annotated[
    list[str],
    typer.Argument(
        metavar="FILES...", help="JSONL or Parquet; FILE#SPLIT takes one split of a file."
    ),
]
_Quarantine = Annotated[
    Path | None,
    typer.Option(help="Write bad rows to this JSONL file, with reasons, and go on with the rest."),
]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for programs to read.")]
_Force = Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")]


@data_app.command()
def generate(
    out_dir: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="Directory for the files.")],
    train: Annotated[
        int, typer.Option(min=1, max=_MOST_ROWS, help="Rows of the train split.")
    ] = 1000,
    validation: Annotated[
        int, typer.Option(min=1, max=_MOST_ROWS, help="Rows of the validation split.")
    ] = 100,
    test: Annotated[
        int, typer.Option(min=1, max=_MOST_ROWS, help="Rows of test_seen and of test_novel.")
    ] = 150,
    seed: Annotated[int, typer.Option(help="Another seed gives other rows.")] = 0,
    file_format: Annotated[Format, typer.Option("--format", help="Kind of file.")] = Format.JSONL,
    as_json: _Json = False,
    force: _Force = False,
) -> None:
    """Generate the demo data: short tasks with exact answers, and injections in them.

    Writes train, validation, test_seen (attack families of training in new wordings) and
    test_novel (families never trained on), and dataset.json about them. The splits are proven to
    share no system prompt, input, attack wording or witness before anything is written.

    Example: causal data generate data/demo --train 500 --seed 7
    """
    from causal_core.data.leaks import check_leaks
    from causal_core.data.writer import new_file, to_table, write_triplets
    from causal_core.generator.generate import generate_dataset

    sizes = {"train": train, "validation": validation, "test_seen": test, "test_novel": test}
    with _user_errors(as_json):
        paths = {split: out_dir / f"{split}.{file_format}" for split in sizes}
        about_path = out_dir / "dataset.json"
        _refuse_existing([*paths.values(), about_path], force)
        dataset = generate_dataset(sizes, seed)
        about = {
            "seed": seed,
            "rows": sizes,
            "files": {split: path.name for split, path in paths.items()},
            "attack_families": {split: _families(rows) for split, rows in dataset.items()},
            "tasks": sorted({row.task for rows in dataset.values() for row in rows if row.task}),
            "leaks": check_leaks(dataset).to_dict(),
        }
        for split, rows in dataset.items():
            write_triplets(to_table(rows), paths[split], overwrite=force)
        # Written last: its presence says that the data set is complete.
        with new_file(about_path, overwrite=force) as temporary:
            temporary.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(about))
        return
    _show_generated(dataset, out_dir)


@data_app.command()
def check(
    files: _Files,
    quarantine: _Quarantine = None,
    as_json: _Json = False,
    leaks: Annotated[
        bool, typer.Option("--leaks/--no-leaks", help="Compare the splits with each other.")
    ] = True,
    strict_leaks: Annotated[
        bool, typer.Option("--strict-leaks", help="Treat a leak between splits as an error.")
    ] = False,
    force: _Force = False,
) -> None:
    """Check training data: every bad row with its line and reason, and what the good rows hold.

    Exit code 0 if the data can be used, 1 if not. With --quarantine bad rows are set aside and
    the code is 0 as long as good rows remain.

    Example: causal data check train.jsonl val.parquet --quarantine bad.jsonl
    """
    from causal_core.data.leaks import check_leaks

    with _user_errors(as_json):
        result = _read(files, quarantine, force)
    splits = _by_split(result.table)
    report = check_leaks(splits) if leaks and len(splits) > 1 else None
    usable = bool(result.table.num_rows) and (quarantine is not None or not result.bad_rows)
    if strict_leaks and report is not None and not report.ok:
        usable = False
    if as_json:
        typer.echo(json.dumps(_summary(result, report, usable)))
    else:
        _show_check(result, report)
    raise typer.Exit(0 if usable else 1)


@data_app.command()
def convert(
    inputs: _Files,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="File to write: .jsonl or .parquet.")],
    quarantine: _Quarantine = None,
    split_dir: Annotated[
        bool,
        typer.Option(
            "--split-dir",
            help="Write a directory named like OUT without its ending, a file a split.",
        ),
    ] = False,
    force: _Force = False,
) -> None:
    """Convert triplets of any accepted spelling to the canonical form.

    Bad rows stop the conversion unless --quarantine sets them aside. The file appears when it is
    complete; an existing one is kept unless --force is given.

    Example: causal data convert old.jsonl data.parquet --quarantine bad.jsonl
    """
    from causal_core.data.schema import DataError
    from causal_core.data.writer import write_triplets

    with _user_errors(as_json=False):
        if out.suffix.lower() not in (".jsonl", ".parquet"):
            raise DataError.in_file(out, "unknown kind of file; write .jsonl or .parquet")
        if is_remote(out):
            reason = "names no file of this machine; write to one, then copy it there"
            raise DataError.in_file(out, reason)
        if not split_dir:
            _refuse_inputs(out, inputs)
            _refuse_existing([out], force)
        result = _read(inputs, quarantine, force)
        if not result.table.num_rows or quarantine is None:
            result.refuse_errors()
        tables = {out: result.table}
        if split_dir:
            folder = out.with_suffix("")
            tables = {
                folder / f"{split}{out.suffix}": table
                for split, table in _by_split(result.table).items()
            }
            for path in tables:
                _refuse_inputs(path, inputs)
            _refuse_existing(list(tables), force)
        for path, table in tables.items():
            write_triplets(table, path, overwrite=force)
    console = _console()
    for path, table in tables.items():
        console.print(plain(f"{table.num_rows:,} rows -> {path}"))
    if result.bad_rows:
        console.print(plain(f"{result.bad_rows:,} bad rows -> {quarantine}"))


@contextmanager
def _user_errors(as_json: bool) -> Iterator[None]:
    """Turn bad data into a message and exit code 1."""
    from causal_core.data.schema import DataError

    try:
        yield
    except DataError as problem:
        if as_json:
            found = [vars(item) for item in problem.problems]
            typer.echo(json.dumps({"ok": False, "errors": found, "error_count": problem.count}))
        else:
            typer.echo(f"error: {printable(problem)}", err=True)
        raise typer.Exit(1) from None
    except OSError as problem:  # of paths that are only looked at: a name too long, no permission
        about = DataError.in_file(problem.filename or "", str(problem.strerror))
        typer.echo(f"error: {printable(about)}", err=True)
        raise typer.Exit(1) from None


def _refuse_existing(paths: list[Path], force: bool) -> None:
    """Stop before any work if a file is in the way."""
    from causal_core.data.schema import DataError, RowProblem

    reason = "exists already; give --force to overwrite it"
    in_the_way = [RowProblem(str(path), 0, "", reason) for path in paths if path.exists()]
    if in_the_way and not force:
        raise DataError(in_the_way)


def _refuse_inputs(written: Path, files: list[str]) -> None:
    """Stop before an input would be replaced by what is made of it, --force or not."""
    from causal_core.data.schema import DataError

    for given in files:
        for path in (Path(given), Path(given.rpartition("#")[0])):
            if path.is_file() and written.exists() and written.samefile(path):
                raise DataError.in_file(written, "is an input; write to another file")


def _read(files: list[str], quarantine: Path | None, force: bool) -> ReadResult:
    """Read all files; bad rows go to the quarantine file, if one is wanted, while reading."""
    from causal_core.data.reader import BadRow, read_triplets
    from causal_core.data.writer import new_file

    if quarantine is None:
        return read_triplets(files, on_error="collect")
    _refuse_inputs(quarantine, files)
    with (
        new_file(quarantine, overwrite=force) as temporary,
        temporary.open("w", encoding="utf-8") as handle,
    ):

        def keep(bad: BadRow) -> None:
            reasons = [{"field": item.field, "reason": item.reason} for item in bad.problems]
            row = {"file": bad.file, "line": bad.line, "problems": reasons, "raw": bad.raw}
            handle.write(json.dumps(row) + "\n")

        return read_triplets(files, on_error="collect", on_bad_row=keep)


def _by_split(table: pa.Table) -> dict[str, pa.Table]:
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


def _summary(result: ReadResult, report: LeakReport | None, usable: bool) -> dict[str, Any]:
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
    }


def _console() -> Console:
    from rich.console import Console

    return Console()


def _one_line(value: object, limit: int = 60) -> str:
    """A value from a file, safe to print: as it is if short and printable, else escaped."""
    from causal_core.visible_text import quoted

    text = str(value)
    return text if text.isprintable() and len(text) <= limit else quoted(text, limit)


def _show_check(result: ReadResult, report: LeakReport | None) -> None:
    from rich.table import Table

    console, table = _console(), result.table
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
        for leak in report.findings:
            where = f"{leak.split_a} and {leak.split_b} share {leak.count:,} {leak.kind}"
            console.print(plain(f"leak: {where}, such as {_one_line(leak.examples[0], 80)}"))
        if report.ok:
            console.print(plain(f"no leaks between {', '.join(report.splits)}"))


def _show_problems(console: Console, title: str, problems: Problems) -> None:

    for problem in problems.kept[:_PROBLEMS_SHOWN]:
        console.print(plain(f"{title}: {problem}"), soft_wrap=True)
    if problems.count > _PROBLEMS_SHOWN:
        console.print(f"... {problems.count:,} {title}s in all", highlight=False)


def _families(rows: list[Triplet]) -> list[str]:
    return sorted({injection.attack_family for row in rows for injection in row.injections})


def _show_generated(dataset: dict[str, list[Triplet]], out_dir: Path) -> None:
    from rich.table import Table

    console = _console()
    grid = Table("split", "rows", "system prompts", "attack families", box=None, pad_edge=False)
    for split, rows in dataset.items():
        families = _families(rows)
        prompts = len({row.system_instruction for row in rows})
        grid.add_row(split, f"{len(rows):,}", f"{prompts:,}", ", ".join(families))
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
