"""`causal attack` as the command line has it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ray_jobs.evaluate_command import named, named_models


def attack_command(
    run: Annotated[Path | None, typer.Argument(metavar="[RUN_DIR]", help="A finished run.")] = None,
    model: Annotated[
        str | None, typer.Option(metavar="PLACE", help="A model: a directory, a hub id or demo.")
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE",
            help="A PEFT adapter: a directory or a hub id, in --model or the base that it names.",
        ),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PLACE",
            help="Another beside it, the control above all: RUN_DIR, model:PLACE or "
            "adapter:PLACE; repeatable.",
            callback=named_models,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="FILE#SPLIT", help="Rows to attack; default: the last test set."),
    ] = None,
    kind: Annotated[
        str, typer.Option(help="words, delimiters, suffix or universal: see docs/attack.md.")
    ] = "words",
    rows: Annotated[int, typer.Option(min=1, max=10_000, help="Rows at most.")] = 24,
    budget: Annotated[
        int | None,
        typer.Option(
            help="Queries for each row: 1, 4, 16, 64 (the default) or 256; gradient steps: 0, 25, "
            "50 or 100 (the default)."
        ),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.1, help="Begin no further budget after so many minutes.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed searches elsewhere.")] = 0,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="key.sub=value", help="A setting, as in causal evaluate."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where results go; default: attack/ of the run, or runs/attacks/ without one.",
        ),
    ] = None,
    any_base: Annotated[
        bool,
        typer.Option("--any-base", help="Put adapters into this model, whatever base they name."),
    ] = False,
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code",
            help="Run Python code that ships with the run's model or --model, which you have read.",
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object for programs to read.")
    ] = False,
) -> None:
    """Attack a run, a model or an adapter with a search that adapts to it, beside others.

    The same rows and budgets for all: wrappers that training never saw with payloads, positions
    and delimiters, guided by the model's own probabilities; or fake turns; or suffixes found by
    gradients. What it finds is kept, and an interrupted command goes on from there.

    Example: causal attack runs/mine --against control=runs/task-only --rows 48 --budget 256

    Example: causal attack --model demo --data mine.jsonl --kind suffix
    """
    import json

    from rich.console import Console

    from ray_jobs.attack import Effort, run_attack, show_attack
    from ray_jobs.subjects import Asked

    file = None if data is None else str(Path(data).expanduser().absolute())
    asked = Asked(
        run=None if run is None else run.resolve(),
        model=model,
        adapter=adapter,
        against=dict(named(against, "--against", "NAME=PLACE")),
        tests={} if file is None else {Path(file).name: [file]},
        settings=settings or (),
        any_base=any_base,
        trust_remote_code=trust_remote_code,
    )
    console = Console(stderr=as_json)
    effort = Effort(kind=kind, level=budget, rows=rows, minutes=minutes, seed=seed)
    result = run_attack(asked, console, effort, out)
    if as_json:
        print(json.dumps(result))
    else:
        show_attack(console, result)
