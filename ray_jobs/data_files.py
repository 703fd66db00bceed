"""What the `causal data` commands have in common: their arguments, their errors, and which files
they must not touch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ray_jobs.console.answer import print_json_error
from ray_jobs.console.plain import printable


class Format(StrEnum):
    """How data files are written."""

    JSONL = "jsonl"
    PARQUET = "parquet"


Files = Annotated[
    list[str],
    typer.Argument(
        metavar="FILES...",
        help="JSON, CSV, Parquet, Arrow, gzip, or what `datasets` saved; FILE#SPLIT takes a split.",
    ),
]
Quarantine = Annotated[
    Path | None,
    typer.Option(help="Write bad rows to this JSONL file, with reasons, and go on with the rest."),
]
Map = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        metavar="FIELD=PATH",
        help="Where rows of another layout have a field, e.g. benign_input=question.text; repeat.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")]


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn bad data into a message and exit code 1."""
    from causal_core.data.schema import DataError
    from causal_core.errors import UserError

    refused: UserError
    try:
        yield
        return
    except UserError as error:
        refused = error
    except OSError as error:  # of paths that are only looked at: a name too long, no permission
        refused = DataError.in_file(error.filename or "", str(error.strerror))
    print_json_error(refused)
    typer.echo(f"error: {printable(refused)}", err=True)
    raise typer.Exit(1)


def refuse_existing(paths: list[Path], force: bool) -> None:
    """Stop before any work if a file is in the way."""
    from causal_core.data.schema import DataError, RowProblem

    reason = "exists already; give --force to overwrite it"
    in_the_way = [RowProblem(str(path), 0, "", reason) for path in paths if path.exists()]
    if in_the_way and not force:
        raise DataError(in_the_way)


def refuse_no_folder(given: Path) -> None:
    """Stop before any work if files are to go where a file is."""
    from causal_core.data.schema import DataError

    if given.exists() and not given.is_dir():
        raise DataError.in_file(given, "is a file; name a directory for what is made")


@contextmanager
def only_writer_into(out_dir: Path) -> Iterator[None]:
    """Holds the lock of a directory for files that are made, for a `with` block.

    Raises:
        DataError: it is a file.
        UserError: another process writes there.
    """
    from causal_core.run.lock import only_writer

    refuse_no_folder(out_dir)
    with only_writer(out_dir, moved_by="OUT_DIR"):
        yield


def refuse_inputs(written: Path, files: list[str]) -> None:
    """Stop before an input would be replaced by what is made of it, --force or not."""
    from causal_core.data.schema import DataError

    for given in files:
        for path in (Path(given), Path(given.rpartition("#")[0])):
            if path.is_file() and written.exists() and written.samefile(path):
                raise DataError.in_file(written, "is an input; write to another file")
