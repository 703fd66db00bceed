"""Arguments and options that several commands share: each is worded, named and checked here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from causal_core.errors import UserError
from ray_jobs.console.answer import answers_in_json

_NAME = re.compile(r"[\w.-]{1,60}", re.ASCII)


def named(given: Sequence[str] | None, option: str, expected: str) -> list[tuple[str, str]]:
    """Pairs of an option `NAME=PLACE`, names no more than file names can be (`UserError`)."""
    pairs = []
    for item in given or ():
        name, _, place = item.partition("=")
        if not place or _NAME.fullmatch(name) is None:
            raise UserError(
                f"{option} {item!r}: expected {expected} with a name of letters, digits, . _ and -"
            )
        pairs.append((name, place))
    return pairs


def named_models(given: list[str] | None) -> list[str]:
    """Checks `--against NAME=...`."""
    expected = "NAME=RUN_DIR, NAME=model:PLACE or NAME=adapter:PLACE"
    names = [name for name, _ in named(given, "--against", expected)]
    for name in names:
        if name in ("base", "trained"):
            raise UserError(
                f"--against {name}=...: expected {expected} with a name other than base, trained"
            )
        if names.count(name) > 1:
            raise UserError(f"--against {name}=... is given {names.count(name)} times")
    return given or []


RunDir = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A finished run.")]
MaybeRunDir = Annotated[Path | None, typer.Argument(metavar="[RUN_DIR]", help="A finished run.")]
ModelPlace = Annotated[
    str | None, typer.Option(metavar="PLACE", help="A model: a directory, a hub id or demo.")
]
AdapterPlace = Annotated[
    str | None,
    typer.Option(
        metavar="PLACE",
        help="A PEFT adapter: a directory or a hub id, in --model or the base that it names.",
    ),
]
Against = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=PLACE",
        help="Another beside it, the control above all: RUN_DIR, model:PLACE or adapter:PLACE; "
        "repeatable.",
        callback=named_models,
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="key.sub=value",
        help="A setting, e.g. resources.gpus_per_worker=1 or model.dtype=bfloat16; repeatable.",
    ),
]
AnyBase = Annotated[
    bool,
    typer.Option("--any-base", help="Put adapters into this model, whatever base they name."),
]
TrustRun = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run Python code that ships with the run's model, which you have read.",
    ),
]
TrustModel = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run Python code that ships with the run's model or --model, which you have read.",
    ),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print one JSON document for programs to read; where it fails, it holds the errors.",
        callback=answers_in_json,
    ),
]
