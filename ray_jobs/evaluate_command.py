"""`causal evaluate`: any models on any test sets, into a directory of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from causal_core.errors import UserError
from causal_core.files import absolute_location
from causal_core.visible_text import shown
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

if TYPE_CHECKING:
    from rich.console import Console

    from causal_core.config import Config
    from causal_core.data.benchmarks.cases import BenchmarkRows
    from causal_core.evaluation.subject import Subject
    from ray_jobs.subjects import Asked

EVALUATIONS = "evaluations"  # in a run directory, or beside others
EVALUATION = "evaluation.json"
_TRAINED_HERE = Path("runs")
TESTS = "tests"  # in its directory: test sets of others in canonical form
_FORMAT = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
# How a result of record is computed; other settings change which rows or answers are judged.
_SET_FOR_THE_RECORD = ("resources.", "ray.", "data.cache_dir", "evaluation.batch_tokens",
                       "evaluation.own_margin", "evaluation.matmul")  # fmt: skip


def named_tests(given: list[str] | None) -> list[str]:
    """Checks `--test NAME=FILE[:format]`."""
    tests_of(given)
    return given or []


def tests_of(given: Sequence[str] | None) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Files by test set, and whose format they have where one is named (`UserError`)."""
    files: dict[str, list[str]] = {}
    formats: dict[str, set[str]] = {}
    for name, place in named(given, "--test", "NAME=FILE[:format]"):
        file, _, kind = place.rpartition(":")
        if not file or _FORMAT.fullmatch(kind) is None or Path(place).exists():
            file, kind = place, ""
        files.setdefault(name, []).append(absolute_location(file))
        formats.setdefault(name, set()).add(kind.lower())
    if mixed := next((name for name, kinds in formats.items() if len(kinds) > 1), None):
        raise UserError(
            f"--test {mixed}=...: files of one test set are of one format: give each of them "
            f":{max(formats[mixed])}, or another name"
        )
    return files, {name: kind for name, kinds in formats.items() for kind in kinds if kind}


def evaluate_command(
    run: MaybeRunDir = None,
    model: ModelPlace = None,
    adapter: AdapterPlace = None,
    test: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE",
            help="A test set instead of the run's: FILE, FILE#SPLIT, or FILE:FORMAT of a public "
            "benchmark (sep, bipia, ...: docs/evaluate.md); repeatable.",
            callback=named_tests,
        ),
    ] = None,
    against: Against = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="A quick look at this many rows per test set.")
    ] = None,
    settings: Settings = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where results go; default: the next number in evaluations/ of the run, or of "
            "runs/ without one.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace results that are there.")] = False,
    record: Annotated[
        bool,
        typer.Option(
            "--record", help="Also put the results into the run's own summary and report."
        ),
    ] = False,
    any_base: AnyBase = False,
    trust_remote_code: TrustModel = False,
    as_json: Json = False,
) -> None:
    """Evaluate a run, a model or an adapter, beside others, on its test sets or on yours.

    A run is evaluated beside its base model, an adapter beside the model it is put into. Results
    are evaluation.json, report.html and rows.parquet (every prompt, answer and score) in a
    directory of their own; the run's record changes with --record alone.

    Example: causal evaluate runs/mine --against control=runs/task-only

    Example: causal evaluate --model MODEL --adapter DIR --test mine=mine.jsonl
    """

    from rich.console import Console

    from ray_jobs.console.plain import plain
    from ray_jobs.console.result import show_evaluation
    from ray_jobs.subjects import Asked

    tests, benchmarks = tests_of(test)
    wanted = [f"evaluation.limit={limit}"] if limit is not None else []
    asked = Asked(
        run=None if run is None else run.resolve(),
        model=model,
        adapter=adapter,
        against=dict(named(against, "--against", "NAME=PLACE")),
        tests=tests,
        benchmarks=benchmarks,
        settings=[*(settings or ()), *wanted],
        any_base=any_base,
        trust_remote_code=trust_remote_code,
    )
    console = Console(stderr=as_json)
    place, evaluation = run_any_evaluation(asked, console, out, force=force, record=record)
    if as_json:
        print_json({"directory": str(place), **evaluation})
        return
    show_evaluation(console, evaluation)
    console.print(plain(f"report, all numbers and every row: {place}"), soft_wrap=True)


def run_any_evaluation(
    asked: Asked,
    console: Console,
    out: Path | None = None,
    *,
    force: bool = False,
    record: bool = False,
) -> tuple[Path, dict[str, Any]]:
    """Evaluates what was asked for.

    Args:
        out: Where results go; None: the next free number.
        force: Replaces results that are there, and a record by a less exact one.
        record: Makes them the run's own as well.

    Returns:
        The directory of the results, and what evaluation.json holds.
    """
    from contextlib import ExitStack
    from dataclasses import replace

    from causal_core.data.benchmarks.registry import read_benchmark
    from causal_core.data.writer import write_triplets
    from causal_core.files import CONFIG
    from causal_core.report.recorded import read_summary
    from causal_core.run.lock import only_writer
    from ray_jobs.console.plain import plain
    from ray_jobs.console.quiet import quiet_libraries
    from ray_jobs.earlier_results import refuse_rounded_record, replacing
    from ray_jobs.run import put_on_record
    from ray_jobs.subjects import evaluation_config, subjects_asked_for
    from ray_jobs.training.ray_session import refused_here

    quiet_libraries()
    _refuse_no_record(asked, record)
    if asked.run is not None:
        _refuse_no_run(asked.run)
        read_summary(asked.run, ended=True)
    place = (_next_place(asked.run) if out is None else out).expanduser().resolve()
    _refuse_what_is_there(place, force)
    read = {
        name: read_benchmark(kind, asked.tests[name]) for name, kind in asked.benchmarks.items()
    }
    canonical = {name: place / TESTS / f"{name}.parquet" for name in read}
    tests = {**asked.tests, **{name: [str(path)] for name, path in canonical.items()}}
    config = evaluation_config(replace(asked, tests=tests))
    if (missing := refused_here(config)) is not None:
        where = f" in {asked.run / CONFIG}" if asked.run is not None else ""
        raise UserError(f"{missing}{where} (or --set resources.gpus_per_worker=0)")
    if record and asked.run is not None and not force:
        refuse_rounded_record(asked.run, config)
    subjects = subjects_asked_for(asked, config)
    with ExitStack() as locks:
        if record and asked.run is not None:
            locks.enter_context(only_writer(asked.run))
        locks.enter_context(replacing(place, force and (place / EVALUATION).exists()))
        if not force:  # again: another may have come to its end since
            _refuse_what_is_there(place, force)
        for name, rows in read.items():
            write_triplets(rows.table, canonical[name], overwrite=True)
            for line in told_of(name, rows):
                console.print(plain(line), soft_wrap=True)
        evaluation = _evaluated_into(place, config, subjects, read, console)
        if record and asked.run is not None:
            put_on_record(asked.run, {k: v for k, v in evaluation.items() if k != "evaluated"})
            console.print(plain(f"These results are the record of {asked.run} now"), soft_wrap=True)
    return place, evaluation


def _refuse_no_run(directory: Path) -> None:
    """What is given as a run and is none, called by what it is."""
    from causal_core.files import SUMMARY

    where = shown(str(directory))
    if not directory.exists():
        raise UserError(f"{where}: no such run directory (a hub id is given with --model)")
    kinds = {"adapter_config.json": "a PEFT adapter: --adapter", "config.json": "a model: --model"}
    for file, kind in kinds.items():
        if (directory / file).is_file() and not (directory / SUMMARY).is_file():
            raise UserError(f"{where} is no run, but {kind} {where}")


def _refuse_what_is_there(place: Path, force: bool) -> None:
    """Neither earlier results nor the report of a run are replaced by mistake."""
    from causal_core.evaluation.trace import ROWS
    from causal_core.files import LOG
    from causal_core.report.run_report import REPORT
    from causal_core.run.lock import LOCK
    from ray_jobs.earlier_results import refuse_directory_of_a_run
    from ray_jobs.evaluate import PROGRESS

    if place.exists() and not place.is_dir():
        raise UserError(f"{shown(str(place))} is a file; name a directory with --out")
    refuse_directory_of_a_run(place, "leave --out out, and results go to its evaluations/")
    if not place.exists():
        return
    ours = {EVALUATION, ROWS, TESTS, LOG, LOCK, PROGRESS}
    if (place / EVALUATION).exists():
        if not force:
            raise UserError(f"{place} holds an evaluation already; give --force to replace it")
        ours.add(REPORT)
    if others := sorted({path.name for path in place.iterdir()} - ours):
        raise UserError(
            f"{shown(str(place))} holds something else than one evaluation ({shown(others[0])}): "
            "results have a directory of their own, name a new one with --out"
        )


def _refuse_no_record(asked: Asked, record: bool) -> None:
    """A record is of a run, on all rows of its own test sets."""
    if not record:
        return
    if asked.run is None:
        raise UserError("--record changes the record of a run: give its directory")
    keys = [setting.partition("=")[0].strip() for setting in asked.settings]
    other = [key for key in keys if not key.startswith(_SET_FOR_THE_RECORD)]
    if asked.tests or other:
        what = "--test" if asked.tests else f"--set {shown(other[0])}"
        what = "--limit" if what == "--set evaluation.limit" else what
        raise UserError(
            "--record takes a run's own test sets, all of their rows and its own settings of the "
            f"evaluation: leave out {what}, or leave out --record"
        )


def told_of(name: str, rows: BenchmarkRows) -> list[str]:
    """What is to be known of a benchmark when its figures are read."""
    lines = [
        f"{name}: {rows.table.num_rows:,} rows, {rows.attacks:,} attacks, {rows.judged:,} judged"
    ]
    if rows.without_answer:
        lines.append(
            f"{name}: {rows.without_answer:,} rows have no reference answer: attack success alone "
            "is judged on them"
        )
    if unknown := rows.attacks - rows.judged - sum(rows.floors.values()):
        lines.append(
            f"{name}: {unknown:,} attacks have no text that would show success: what they do shows "
            "in the answers that stay right under attack"
        )
    lines += [
        f"{name}: {count:,} attacks are not judged, since their witness is there without them, "
        f"{where}"
        for where, count in rows.floors.items()
        if count
    ]
    lines += [f"{name}: {count:,} left out: {why}" for why, count in rows.dropped.items() if count]
    return lines


def _evaluated_into(
    place: Path,
    config: Config,
    subjects: list[Subject],
    benchmarks: Mapping[str, BenchmarkRows],
    console: Console,
) -> dict[str, Any]:
    import json

    from causal_core.evaluation.trace import ROWS
    from causal_core.files import write_whole
    from causal_core.report.run_report import write_evaluation_report
    from ray_jobs.run import evaluated

    config = config.model_copy(deep=True)
    config.run.dir = str(place)
    evaluation = evaluated(config, subjects, console, place / ROWS)
    evaluation["evaluated"] = {
        "tests": config.data.test,
        "limit": config.evaluation.limit,
        "benchmarks": {name: told_of(name, rows) for name, rows in benchmarks.items()},
        "models": {
            subject.name: {
                "base": subject.config.model.model_dump(mode="json"),
                "checkpoint": None if subject.checkpoint is None else str(subject.checkpoint),
                "adapter": None if subject.adapter is None else str(subject.adapter),
            }
            for subject in subjects
        },
    }
    facts = {
        "Test sets": ", ".join(f"{k}: {' '.join(v)}" for k, v in config.data.test.items()),
        "Rows per test set": "all" if (limit := config.evaluation.limit) is None else f"≤ {limit}",
        "Matrix products": evaluation["matmul"],
    }
    facts.update({f"Benchmark {k}": "; ".join(told_of(k, v)) for k, v in benchmarks.items()})
    # First what says that the rest is an evaluation: a report alone would be taken for another's.
    write_whole(place / EVALUATION, json.dumps(evaluation, indent=1) + "\n")
    write_evaluation_report(place, evaluation, facts)
    return evaluation


def _next_place(run: Path | None) -> Path:
    """The next free number in the run's evaluations, or in those of no run."""
    folder = (_TRAINED_HERE if run is None else run) / EVALUATIONS
    number = 1
    while (folder / f"{number:04}").exists():
        number += 1
    return folder / f"{number:04}"
