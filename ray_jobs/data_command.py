"""`causal data`: generate, check and convert training data. Says what it finds, changes no input.

Texts from data files are hostile by nature: they are shown as plain `Text`, escaped, never as
markup.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from causal_core.files import is_remote
from ray_jobs.benchmark_command import benchmark
from ray_jobs.console.answer import print_json
from ray_jobs.console.help import WholeLines
from ray_jobs.console.plain import plain
from ray_jobs.data_files import (
    Files,
    Force,
    Format,
    Map,
    Quarantine,
    only_writer_into,
    refuse_existing,
    refuse_inputs,
    user_errors,
)
from ray_jobs.inject_command import inject
from ray_jobs.options import Json
from ray_jobs.room_check import ForConfig, ForModel, MaxLength, config_for, rooms, told_of
from ray_jobs.room_check import as_json as rooms_json
from ray_jobs.targets_command import targets
from ray_jobs.tokenize_command import tokenize

if TYPE_CHECKING:  # heavy imports wait until a command runs, so that --help is quick
    from causal_core.data.reader import ReadResult

data_app = typer.Typer(
    cls=WholeLines,
    help="Generate, check and convert training data.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

data_app.command()(inject)
data_app.command()(benchmark)
data_app.command()(targets)
data_app.command()(tokenize)

_MOST_ROWS = 10**6


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
    open_work: Annotated[
        int,
        typer.Option(
            "--open",
            min=0,
            max=_MOST_ROWS,
            help="Rows of open work without answers, for `causal data targets`.",
        ),
    ] = 0,
    seed: Annotated[int, typer.Option(help="Another seed gives other rows.")] = 0,
    file_format: Annotated[Format, typer.Option("--format", help="Kind of file.")] = Format.JSONL,
    as_json: Json = False,
    force: Force = False,
) -> None:
    """Generate the demo data: short tasks with exact answers, and injections in them.

    Writes train, validation, test_seen (attack families of training in new wordings) and
    test_novel (families never trained on), and dataset.json about them. The splits are proven to
    share no system prompt, input, attack wording or witness before anything is written. --open adds
    open.jsonl, requests without one right answer, for a model to answer itself (data targets).

    Example: causal data generate data/demo --train 500 --seed 7
    """
    from rich.console import Console

    from causal_core.data.leaks import check_leaks
    from causal_core.data.writer import new_file, to_table, write_triplets
    from causal_core.generator.generate import generate_dataset
    from causal_core.generator.open_work import open_rows
    from ray_jobs.data_summary import families, show_generated

    sizes = {"train": train, "validation": validation, "test_seen": test, "test_novel": test}
    with user_errors(), only_writer_into(out_dir):
        paths = {split: out_dir / f"{split}.{file_format}" for split in sizes}
        open_path, about_path = out_dir / f"open.{file_format}", out_dir / "dataset.json"
        refuse_existing([*paths.values(), open_path, about_path], force)
        dataset = generate_dataset(sizes, seed)
        unanswered = list(open_rows(open_work, seed))
        about = {
            "seed": seed,
            "rows": sizes,
            "files": {split: path.name for split, path in paths.items()},
            "attack_families": {split: families(rows) for split, rows in dataset.items()},
            "tasks": sorted({row.task for rows in dataset.values() for row in rows if row.task}),
            "leaks": check_leaks(dataset).to_dict(),
        }
        for split, rows in dataset.items():
            write_triplets(to_table(rows), paths[split], overwrite=force)
        if unanswered:
            about["open_work"] = {"rows": open_work, "file": open_path.name}
            write_triplets(to_table(unanswered), open_path, overwrite=force)
        # Written last: its presence says that the data set is complete.
        with new_file(about_path, overwrite=force) as temporary:
            temporary.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    if as_json:
        print_json(about)
        return
    show_generated(dataset, out_dir)
    if unanswered:
        about_open = f"{open_work:,} rows of open work without answers: {open_path}"
        Console().print(plain(about_open), soft_wrap=True)


@data_app.command()
def check(
    files: Files,
    columns: Map = None,
    quarantine: Quarantine = None,
    as_json: Json = False,
    leaks: Annotated[
        bool, typer.Option("--leaks/--no-leaks", help="Compare the splits with each other.")
    ] = True,
    strict_leaks: Annotated[
        bool, typer.Option("--strict-leaks", help="Treat a leak between splits as an error.")
    ] = False,
    lint: Annotated[
        bool, typer.Option("--lint/--no-lint", help="Look for what teaches the wrong thing.")
    ] = True,
    config: ForConfig = None,
    model: ForModel = None,
    max_length: MaxLength = None,
    force: Force = False,
) -> None:
    """Check training data: every bad row with its line and reason, and what the good rows hold.

    Notes say what a model could learn from the rows instead of what is meant: attacks that their
    length or words give away, near-duplicates, one wording for all, secrets, unseen characters.
    With --config or --model also which rows are longer than a run has room for.

    Exit code 0 if the data can be used, 1 if not. With --quarantine bad rows are set aside and
    the code is 0 as long as good rows remain.

    Example: causal data check train.jsonl val.parquet --quarantine bad.jsonl
    """
    from rich.console import Console

    from causal_core.data.leaks import check_leaks
    from causal_core.data.lint.report import lint as linted
    from ray_jobs.data_summary import by_split, show_check, summary

    with user_errors():
        run = config_for(config, model, max_length)
        if not columns and run is not None:
            columns = [f"{name}={path}" for name, path in run.data.columns.items()]
        result = _read(files, quarantine, force, columns)
        splits = by_split(result.table)
        room = rooms(splits, run) if run is not None else {}
    report = check_leaks(splits) if leaks and len(splits) > 1 else None
    notes = linted(splits) if lint and splits else None
    usable = bool(result.table.num_rows) and (quarantine is not None or not result.bad_rows)
    if strict_leaks and report is not None and not report.ok:
        usable = False
    if as_json:
        print_json(summary(result, report, notes, usable) | {"tokens": rooms_json(room)})
    else:
        show_check(result, report, notes)
        for name, found in room.items():
            Console().print(plain(told_of(name, found)), soft_wrap=True)
    raise typer.Exit(0 if usable else 1)


@data_app.command()
def convert(
    inputs: Files,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="File to write: .jsonl or .parquet.")],
    columns: Map = None,
    quarantine: Quarantine = None,
    split_dir: Annotated[
        bool,
        typer.Option(
            "--split-dir",
            help="Write a directory named like OUT without its ending, a file a split.",
        ),
    ] = False,
    force: Force = False,
) -> None:
    """Convert rows of any layout that is known to the canonical form.

    Triplets of other spellings, preference pairs (the chosen answer is the safe one, the rejected
    one what the attack wants), and as plain rows without an attack: chats, instructions with an
    input. Any other layout by --map FIELD=PATH.

    Bad rows stop the conversion unless --quarantine sets them aside. The file appears when it is
    complete; an existing one is kept unless --force is given.

    Example: causal data convert old.jsonl data.parquet --quarantine bad.jsonl
    """
    from rich.console import Console

    from causal_core.data.schema import DataError
    from causal_core.data.writer import write_triplets
    from ray_jobs.data_summary import by_split, leaks_of, show_leaks

    with user_errors():
        if out.suffix.lower() not in (".jsonl", ".parquet"):
            raise DataError.in_file(out, "unknown kind of file; write .jsonl or .parquet")
        if is_remote(out):
            reason = "names no file of this machine; write to one, then copy it there"
            raise DataError.in_file(out, reason)
        if not split_dir:
            refuse_inputs(out, inputs)
            refuse_existing([out], force)
        result = _read(inputs, quarantine, force, columns, convert=True)
        if not result.table.num_rows or quarantine is None:
            result.refuse_errors()
        tables = {out: result.table}
        if split_dir:
            folder = out.with_suffix("")
            tables = {
                folder / f"{split}{out.suffix}": table
                for split, table in by_split(result.table).items()
            }
            for path in tables:
                refuse_inputs(path, inputs)
            refuse_existing(list(tables), force)
        for path, table in tables.items():
            write_triplets(table, path, overwrite=force)
    console = Console()
    for path, table in tables.items():
        console.print(plain(f"{table.num_rows:,} rows -> {path}"))
    if (report := leaks_of(result.table)) is not None:
        show_leaks(console, report)
    if result.bad_rows:
        console.print(plain(f"{result.bad_rows:,} bad rows -> {quarantine}"))


def _read(
    files: list[str],
    quarantine: Path | None,
    force: bool,
    columns: list[str] | None,
    convert: bool = False,
) -> ReadResult:
    """Read all files; bad rows go to the quarantine file, if one is wanted, while reading."""
    from causal_core.data.column_paths import ColumnPaths
    from causal_core.data.reader import BadRow, read_triplets
    from causal_core.data.writer import new_file

    where = ColumnPaths.parsed(columns or ())
    if quarantine is None:
        return read_triplets(files, on_error="collect", columns=where, convert=convert)
    refuse_inputs(quarantine, files)
    with (
        new_file(quarantine, overwrite=force) as temporary,
        temporary.open("w", encoding="utf-8") as handle,
    ):

        def keep(bad: BadRow) -> None:
            reasons = [{"field": item.field, "reason": item.reason} for item in bad.problems]
            row = {"file": bad.file, "line": bad.line, "problems": reasons, "raw": bad.raw}
            handle.write(json.dumps(row) + "\n")

        return read_triplets(
            files, on_error="collect", on_bad_row=keep, columns=where, convert=convert
        )
