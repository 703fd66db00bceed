"""The `causal` program: the commands of `ray_jobs`, and `tune` from this package above it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ray_jobs.cli import app
from ray_jobs.console.answer import print_json
from ray_jobs.console.exit_codes import exit_with_code
from ray_jobs.options import Json


@app.command()
def tune(
    config: Annotated[
        Path,
        typer.Argument(metavar="CONFIG", help="A run's YAML file with a section `tune`."),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="key.sub=value...", help="Overrides, e.g. tune.trials=20"),
    ] = None,
    dry: Annotated[
        bool, typer.Option("--dry-run", help="Show the space and what fits; train nothing.")
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over; the old sweep directory is renamed.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Search loss weights, LoRA rank and other fields within a memory budget. Run again, it
    continues.

    Points that cannot fit are refused before they reach a device. Leaves results.parquet, best.yaml
    (for causal train) and report.html in run.dir. Exits with 1 when nothing of the space fits.

    Example: causal tune configs/tune-cpu.yaml --dry-run
    """
    from rich.console import Console

    from tune_spaces.config import load_sweep

    sweep = load_sweep(config, overrides or ())  # before torch is imported: errors come at once
    from tune_spaces.sweep import dry_run, run_sweep

    console = Console(stderr=as_json)
    result = dry_run(sweep, console) if dry else run_sweep(sweep, console, fresh=fresh)
    if as_json:
        print_json(result)


def main() -> None:
    """The console script."""
    exit_with_code(lambda: app())


if __name__ == "__main__":
    main()
