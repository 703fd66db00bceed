"""`causal attack` as the command line has it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from causal_core.files import absolute_location
from ray_jobs.console.answer import print_json
from ray_jobs.options import (
    AdapterPlace,
    Against,
    AnyBase,
    Json,
    MaybeRunDir,
    ModelPlace,
    Settings,
    TrustModel,
    named,
)


def attack_command(
    run: MaybeRunDir = None,
    model: ModelPlace = None,
    adapter: AdapterPlace = None,
    against: Against = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="FILE#SPLIT", help="Rows to attack; default: the last test set."),
    ] = None,
    kind: Annotated[
        str, typer.Option(help="words, delimiters, suffix, universal or warm: see docs/attack.md.")
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
        float | None,
        typer.Option(
            min=0.1,
            help="End after so many minutes, with what is done then; the same command goes on.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed searches elsewhere.")] = 0,
    settings: Settings = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where results go; default: attack/ of the run, or runs/attacks/ without one.",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a larger or another attack that is there.")
    ] = False,
    any_base: AnyBase = False,
    trust_remote_code: TrustModel = False,
    as_json: Json = False,
) -> None:
    """Attack a run, a model or an adapter with a search that adapts to it, beside others.

    The same rows and budgets for all: wrappers that training never saw with payloads, positions
    and delimiters, guided by the model's own probabilities; or fake turns; or suffixes found by
    gradients. What it finds is kept, and an interrupted command goes on from there.

    Example: causal attack runs/mine --against control=runs/task-only --rows 48 --budget 256

    Example: causal attack --model demo --data mine.jsonl --kind suffix
    """

    from rich.console import Console

    from ray_jobs.attack import Effort, run_attack, show_attack
    from ray_jobs.subjects import Asked

    file = None if data is None else absolute_location(data)
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
    result = run_attack(asked, console, effort, out, force=force)
    if as_json:
        print_json(result)
    else:
        show_attack(console, result)
