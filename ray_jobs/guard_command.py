"""`causal guard`: a detector read off a run's own forward, and what it is worth beside others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from causal_core.errors import UserError
from causal_core.files import absolute_location
from ray_jobs.console.answer import print_json
from ray_jobs.options import Json, RunDir, TrustRun, named

_MOST_BYTES = 2**20  # of guard.json

if TYPE_CHECKING:
    from rich.console import Console

    from causal_core.evaluation.guard_file import Guard


def guard(
    run: RunDir,
    fit: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Rows to fit it on, of no test set; default: the validation data."
        ),
    ] = None,
    test: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="A test set instead of the run's; repeatable."),
    ] = None,
    false_positives: Annotated[
        float,
        typer.Option(min=0.0, max=0.5, help="Share of clean prompts that may be suspected."),
    ] = 0.01,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a detector of other rows that is there.")
    ] = False,
    trust_remote_code: TrustRun = False,
    as_json: Json = False,
) -> None:
    """Fit a detector of attacked prompts on a run's representations, and measure it.

    It is compared with a detector that sees the prompt's length alone and one that sees its words
    alone, on every test set, also between prompts of equal length. The read-out is kept in
    RUN_DIR/guard with what it was found to be worth; nothing uses it unless asked to.

    Example: causal guard runs/mine --fit more.jsonl
    """

    from rich.console import Console

    from causal_core.evaluation.guard_file import FOLDER
    from ray_jobs.console.plain import plain
    from ray_jobs.console.quiet import quiet_libraries

    quiet_libraries()
    tests: dict[str, list[str]] = {}
    for name, file in named(test, "--test", "NAME=FILE"):
        tests.setdefault(name, []).append(file)
    result = run_guard(
        run.resolve(), fit=fit, tests=tests, false_positives=false_positives,
        trust_remote_code=trust_remote_code, force=force,
    )  # fmt: skip
    if as_json:
        print_json(result)
        return
    console = Console()
    show_guard(console, result)
    console.print(plain(f"read-out and figures: {run.resolve() / FOLDER}"), soft_wrap=True)


def run_guard(
    directory: Path,
    *,
    fit: str | None = None,
    tests: Mapping[str, list[str]] | None = None,
    false_positives: float = 0.01,
    trust_remote_code: bool = False,
    force: bool = False,
) -> dict[str, Any]:
    """Fits the detectors, measures them, keeps the best of the model's own read-outs.

    Args:
        force: Whether what was fitted or measured on other rows may be replaced.

    Returns:
        What guard.json holds.

    Raises:
        UserError: no checkpoint, no test set, or too few rows with attacks to fit on.
    """
    from causal_core.checkpoints.contents import read_manifest
    from causal_core.config_file import recorded_config
    from causal_core.evaluation.guard import advantage
    from causal_core.evaluation.guard_file import FOLDER, Guard
    from causal_core.run.lock import only_writer
    from ray_jobs.detectors import LENGTH, WORDS, measure_detectors
    from ray_jobs.subjects import run_subject

    config = recorded_config(directory, trust_remote_code)
    if tests:
        config.data.test = {k: list(v) for k, v in tests.items()}
    chosen = [fit] if fit is not None else config.data.validation
    if not chosen:
        raise UserError("the run has no validation data to fit a detector on: give rows with --fit")
    if not config.data.test:
        raise UserError("no test set: name one, as in --test novel=FILE")
    config = config.with_absolute_paths()
    if not force:
        _refuse_other(directory / FOLDER, chosen, set(config.data.test))
    subject = run_subject(directory, config)
    assert subject.checkpoint is not None
    weights = read_manifest(subject.checkpoint).weights()
    with only_writer(directory / FOLDER, moved_by="a copy of the run elsewhere"):
        measured = measure_detectors(
            subject,
            config,
            [absolute_location(path) for path in chosen],
            config.data.test,
            false_positives,
        )
        own, fitting = measured.own(), measured.fitting
        kept = max(own, key=lambda name: own[name].fitted.auroc)
        sets: dict[str, Any] = {}
        for name, found in measured.tests.items():
            scores, prompts = measured.scores(name), found.seen_as(found.vectors["mean"])
            sets[name] = {
                **measured.figures(name),
                "advantage": {
                    k: advantage(scores[kept], scores[k], prompts) for k in (LENGTH, WORDS)
                },
            }
        result = {
            "read_out": kept,
            "false_positives": false_positives,
            "fitted_on": {"files": chosen, "clean": int((~fitting.attacked).sum()),
                          "attacked": int(fitting.attacked.sum())},
            "better": {
                name: all(low > 0 for _, low, _ in found["advantage"].values())
                for name, found in sets.items()
            },
            "sets": sets,
        }  # fmt: skip
        _write(directory, result, Guard(own[kept].fitted.read_out, kept, weights))
    return result


def _refuse_other(place: Path, fitted_on: list[str], tests: set[str]) -> None:
    """Keeps a detector that was fitted on other rows, or measured on sets not asked for."""
    import json

    from causal_core.evaluation.guard_file import RECORD
    from causal_core.files import read_small
    from causal_core.visible_text import shown

    try:
        earlier = json.loads(read_small(place / RECORD, _MOST_BYTES))
        files, sets = list(earlier["fitted_on"]["files"]), set(earlier["sets"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return  # none, or none that can be read
    if files != fitted_on or not sets <= tests:
        raise UserError(
            f"{shown(str(place))} holds a detector that was fitted on "
            f"{', '.join(shown(str(file)) for file in files[:3])} and measured on "
            f"{', '.join(shown(str(name)) for name in sorted(sets)[:5])}, which this one would "
            "replace: give --force to replace it, or work on a copy of the run"
        )


def _write(directory: Path, result: Mapping[str, Any], guard: Guard) -> None:
    import json

    from causal_core.evaluation.guard_file import FOLDER, RECORD, WEIGHTS, write_guard
    from causal_core.files import write_whole

    write_guard(directory / FOLDER / WEIGHTS, guard)
    write_whole(directory / FOLDER / RECORD, json.dumps(result, indent=1) + "\n")


def show_guard(console: Console, result: Mapping[str, Any]) -> None:
    """One table over all test sets and detectors, and the conclusion."""
    from rich.table import Table

    from ray_jobs.console.plain import plain

    table = Table(title="detectors of attacked prompts", title_justify="left")
    for column in ("test set", "detector", "AUROC", "at equal length", "found at 1 % FPR",
                   "found / false at the threshold"):  # fmt: skip
        table.add_column(column)
    for name, found in result["sets"].items():
        for detector, figures in found["detectors"].items():
            value, low, high = figures["auroc"]
            equal = figures["auroc_at_equal_length"]
            table.add_row(
                plain(name),
                detector,
                f"{value:.3f} ({low:.3f} to {high:.3f})",
                "" if equal is None else f"{equal:.3f}",
                f"{figures['found_at_one_percent']:.1%}",
                f"{figures['found']:.1%} / {figures['false_positives']:.1%}",
            )
    console.print(table)
    for name, better in result["better"].items():
        verdict = "tells more than" if better else "cannot be shown to tell more than"
        console.print(
            plain(f"{name}: the read-out ({result['read_out']}) {verdict} length and words do"),
            soft_wrap=True,
        )
