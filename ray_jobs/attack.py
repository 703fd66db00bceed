"""`causal attack`: an attacker that adapts, against a run, a model or an adapter, and others."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.status import Status
from rich.table import Table

from causal_core.attack.kinds import KINDS, Given, Kind
from causal_core.attack.kit import bare_kit
from causal_core.attack.target import Attacker, Progress, RowAttack, Target
from causal_core.checkpoints.adapter import read_adapter
from causal_core.config import Config
from causal_core.data.schema import Triplet
from causal_core.device import prepare_device
from causal_core.errors import UserError
from causal_core.evaluation.metrics import SHARE
from causal_core.evaluation.statistics import Estimate, wilson
from causal_core.evaluation.subject import Subject, in_memory
from causal_core.files import cache_root, read_small, whole_or_absent, write_whole
from causal_core.model.causal_model import CausalModel
from causal_core.model.device_costs import measurements_of, takes_bfloat16
from causal_core.pretrained.loading import base_fingerprint, resolve_model
from causal_core.report.attacks import CAVEAT, FOLDER, attack_file, too_weak
from causal_core.report.recorded import read_summary
from causal_core.report.run_report import write_report
from causal_core.run.lock import only_writer
from causal_core.tokens.run_data import load_encoder, load_split
from ray_jobs.attack_given import (
    MOST_BYTES,
    Along,
    Looked,
    evenly,
    record_of,
    refuse_smaller,
    tuning_rows,
    universal_suffix,
    ways_of,
)
from ray_jobs.console.plain import plain
from ray_jobs.console.quiet import quiet_libraries
from ray_jobs.earlier_results import refuse_directory_of_a_run
from ray_jobs.subjects import Asked, evaluation_config, subjects_asked_for
from ray_jobs.training.ray_session import refused_here

if TYPE_CHECKING:
    import torch

_FORMAT = 2
_PRODUCTS = "train.matmul"
_KEPT_SECONDS = 20  # after which what was found within a level is kept
_ATTACKS = Path("runs") / "attacks"  # of what is no run


@dataclass(frozen=True)
class Effort:
    """How hard to try."""

    kind: str = "words"
    level: int | None = None  # None: the kind's own
    rows: int = 24
    minutes: float | None = None
    seed: int = 0


def run_attack(
    asked: Asked,
    console: Console,
    effort: Effort,
    out: Path | None = None,
    *,
    force: bool = False,
) -> dict[str, Any]:
    """Attacks what was asked for, its base and others with the same rows and levels.

    What was found is kept after every level, and a command that is interrupted goes on from there.
    The attack on a run is kept in its `attack/`, and its report shows it.

    Args:
        asked: Its last test set holds the rows.
        out: Where results go; None: the run's `attack/`, or a directory named after the model.
        force: Whether a smaller or another attack of the kind may replace what is there.

    Returns:
        Curves by model: for each level the share of rows broken, with its interval.

    Raises:
        UserError: nothing to attack, no rows, or a kind or level that there is none of.
    """
    quiet_libraries()
    kind = KINDS.get(effort.kind)
    if kind is None:
        raise UserError(f"--kind {effort.kind}: it is one of {', '.join(KINDS)}")
    if effort.level is not None and effort.level not in kind.levels:
        levels = ", ".join(map(str, kind.levels))
        raise UserError(f"--budget {effort.level}: with --kind {effort.kind} it is one of {levels}")
    reported = asked.run is not None and out is None
    if reported and asked.run is not None:
        read_summary(asked.run)  # what the report needs beside the curves: known before the work
    config = evaluation_config(asked, also=(_PRODUCTS,))
    if (missing := refused_here(config)) is not None:
        raise UserError(f"{missing} (or --set resources.gpus_per_worker=0)")
    subjects = subjects_asked_for(asked, config)
    place = (out or _place(asked)).expanduser().resolve()
    refuse_directory_of_a_run(place, "leave --out out, and results go to its attack/")
    last = kind.default if effort.level is None else effort.level
    found = Looked(list(config.data.test)[-1], effort.rows, effort.seed, last)
    names = {subject.name for subject in subjects}
    if not force:
        refuse_smaller(place, effort.kind, found, names)
    with ways_of(subjects, kind) as ways, only_writer(place, moved_by="--out"):
        if not force:  # again: another may have come to its end since
            refuse_smaller(place, effort.kind, found, names)
        result = _attacked(config, subjects, ways, place, console, kind, effort)
    if reported and asked.run is not None:
        write_report(asked.run)
    return result


def _place(asked: Asked) -> Path:
    if asked.run is not None:
        return asked.run / FOLDER
    named = asked.adapter or asked.model or ""
    return _ATTACKS / (re.sub(r"[^A-Za-z0-9._-]+", "-", named).strip("-.")[-80:] or "model")


def _attacked(
    config: Config,
    subjects: Sequence[Subject],
    ways: Mapping[str, Along],
    place: Path,
    console: Console,
    kind: Kind,
    effort: Effort,
) -> dict[str, Any]:
    import torch

    begin = time.monotonic()
    deadline = None if effort.minutes is None else begin + 60 * effort.minutes
    device = torch.device("cuda" if config.resources.gpus_per_worker else "cpu")
    prepare_device(device, config.resources.threads, config.resources.gpus_per_worker)
    name = list(config.data.test)[-1]
    curves: dict[str, Any] = {}
    count = 0
    for subject, model in in_memory(subjects, device):
        # Another base has another tokenizer: the same texts, read by its own.
        encoder = load_encoder(subject.config)
        dataset = load_split(subject.config, encoder, config.data.test[name])
        chosen = evenly(len(dataset), effort.rows)
        rows = [dataset.triplet(index) for index in chosen]
        count = len(rows)
        room = dataset.longest_of("benign_answer", "attack_answer") + 8
        tokens = config.evaluation.batch_tokens
        rounded = _in_bfloat16(config, model, device)
        target = Target(model, encoder, device, tokens, room, rounded)
        key = {
            "format": _FORMAT,
            "kind": effort.kind,
            "data": dataset.fingerprint,
            "rows": chosen,
            "seed": effort.seed,
            "model": _digest(subject, model),
        }
        if rounded:
            key["products"] = "bfloat16"
        given, along = Given(tuning_rows(subject.config, kind)), ways[subject.name]
        if kind.along:
            size = len(encoder.tokenizer)
            start = universal_suffix(place, subject.name, str(key["model"]), size)
            given = Given(way=along.way, start=start)
            key |= {"way": along.weights, "start": start}
        attacker = kind.make(target, effort.seed, given)
        key["version"] = _parts_digest(attacker)
        passes = max(1, len(along.way))
        record = record_of(place, effort.kind, subject.name)
        found, done = _searched(
            attacker, rows, record, key, kind, effort, deadline, console, subject.name, passes
        )
        curves[subject.name] = _curve(found, done)
        _write_rows(place / f"{effort.kind}-{subject.name}.parquet", rows, found)
    result = {
        "kind": effort.kind,
        "title": kind.title,
        "unit": kind.unit,
        "data": name,
        "rows": count,
        "seed": effort.seed,
        "curves": {s.name: curves[s.name] for s in subjects},
        "caveat": CAVEAT,
    }
    write_whole(attack_file(place, effort.kind), json.dumps(result, indent=1) + "\n")
    return result


def _in_bfloat16(config: Config, model: CausalModel, device: torch.device) -> bool:
    """Whether `train.matmul` lets a search look for candidates by products in bfloat16 here."""
    if (asked := config.frozen_products()) == "float32":
        return False
    cache = cache_root(config.data.cache_dir)
    speed = measurements_of(model, device, cache, bfloat16=True).bfloat16_speed
    return takes_bfloat16(asked, speed)


def _digest(subject: Subject, model: Any) -> str:
    """What is attacked: the base and the weights that were trained on it."""
    config = subject.config
    source = resolve_model(config.model, config.data.cache_dir)
    base = base_fingerprint(source, model.peft_model.get_base_model())
    trained = "none"
    if subject.checkpoint is not None:
        manifest = json.loads((subject.checkpoint / "manifest.json").read_text(encoding="utf-8"))
        trained = json.dumps(manifest.get("files") or manifest, sort_keys=True)
    elif subject.adapter is not None:
        trained = read_adapter(subject.adapter).fingerprint()
    return f"{base}/{config.model.quantization}/{config.model.dtype}/{trained}"


def _parts_digest(attacker: Attacker) -> str:
    """What candidates are put together from."""
    return str(getattr(attacker, "kit", bare_kit()).digest())


def _searched(
    attacker: Attacker,
    rows: list[Triplet],
    record: Path,
    key: Mapping[str, Any],
    kind: Kind,
    effort: Effort,
    deadline: float | None,
    console: Console,
    name: str,
    passes: int,
) -> tuple[Sequence[RowAttack], list[int]]:
    """The rows up to the last level that was reached, and which were.

    Args:
        passes: How often an attacker tells of each row.
    """

    def out_of_time(what: str) -> None:
        console.print(plain(f"{what}: out of time, not done"), style="yellow")

    last = kind.default if effort.level is None else effort.level
    found, done = _recorded(attacker, record, key, kind, [row.id for row in rows])
    if found is None:
        found, done = attacker.begin(rows), []
    for level in kind.levels:
        if level in done or level > last:
            continue
        what = f"{name}: {level} {kind.unit}"
        if deadline is not None and time.monotonic() > deadline:
            out_of_time(what)
            break
        with console.status(plain(what)) as status:
            # Where every row is searched on its own, a cut loses the last rows alone.
            keep = None if kind.tuned or kind.along else partial(_keep, record, key, done, found)
            counted = _counted(status, what, len(rows), passes, deadline, keep)
            try:
                attacker.spend(rows, found, level, counted)
            except _OutOfTime:
                if keep is not None:
                    keep()
                out_of_time(what)
                break
        done = [*done, level]
        _keep(record, key, done, found)
        broken = sum(row.broken_at is not None for row in found)
        console.print(
            plain(f"{name}: {broken} of {len(rows)} rows broken with {level} {kind.unit}")
        )
    return found, [level for level in done if level <= last]


def _keep(
    record: Path, key: Mapping[str, Any], done: Sequence[int], found: Sequence[RowAttack]
) -> None:
    kept = {"key": dict(key), "done": done, "rows": [row.to_record() for row in found]}
    write_whole(record, json.dumps(kept))


class _OutOfTime(Exception):
    """A level takes longer than there was time."""


def _counted(
    status: Status,
    what: str,
    rows: int,
    passes: int,
    deadline: float | None,
    keep: Callable[[], None] | None,
) -> Progress:
    """Tells of every row that is done, and with which model where a row takes several.

    It calls `keep` now and then, and raises `_OutOfTime` after the deadline where more is to do.
    """
    numbers = itertools.count()
    kept = time.monotonic()

    def tell() -> None:
        nonlocal kept
        done, row = divmod(number := next(numbers), rows)
        on = f", model {done + 1} of {passes}" if passes > 1 else ""
        status.update(plain(f"{what}, of {rows} rows{on}: {row + 1} done"))
        if keep is not None and time.monotonic() - kept >= _KEPT_SECONDS:
            keep()
            kept = time.monotonic()
        more = number + 1 < rows * passes
        if more and deadline is not None and time.monotonic() > deadline:
            raise _OutOfTime

    return tell


def _recorded(
    attacker: Attacker, record: Path, key: Mapping[str, Any], kind: Kind, ids: list[str]
) -> tuple[Sequence[RowAttack] | None, list[int]]:
    """What an earlier command with the same key found; nothing where it is another or damaged."""
    try:
        kept = json.loads(read_small(record, MOST_BYTES))
        if kept["key"] != json.loads(json.dumps(key)):
            return None, []
        found = [attacker.record.from_record(row) for row in kept["rows"]]
        done = [level for level in kind.levels if level in kept["done"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None, []
    same = [row.id for row in found] == ids
    return (found, done) if same else (None, [])


def _curve(found: Sequence[RowAttack], done: list[int]) -> list[dict[str, Any]]:
    curve = []
    for level in done:
        broken = sum(row.broken_at is not None and row.broken_at <= level for row in found)
        estimate = wilson(broken, len(found))
        assert estimate is not None
        curve.append({"budget": level, **estimate.to_dict()})
    return curve


def _write_rows(path: Path, rows: list[Triplet], found: Sequence[RowAttack]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = [
        {
            "id": row.id, "broken_at": state.broken_at, "queries": state.queries,
            "attacked_input": state.attack, "target": state.target, "answer": state.answer,
            "clean_answer": state.clean_answer,
        }
        for row, state in zip(rows, found, strict=True)
    ]  # fmt: skip
    with whole_or_absent(path) as temporary:
        pq.write_table(pa.Table.from_pylist(table), temporary)


def show_attack(console: Console, result: Mapping[str, Any]) -> None:
    """The curves as a table, with what they do not say."""
    curves = result["curves"]
    levels = sorted({point["budget"] for curve in curves.values() for point in curve})
    title = f"rows broken, {result['rows']} of {result['data']}: {result['title']}"
    grid = Table(title=plain(title), box=None)
    grid.add_column(plain(result["unit"]), justify="right")
    for name in curves:
        grid.add_column(plain(name), justify="right")
    for level in levels:
        grid.add_row(str(level), *(_point(curve, level) for curve in curves.values()))
    console.print(grid)
    if (warning := too_weak(result)) is not None:
        console.print(plain(warning), style="yellow", soft_wrap=True)
    console.print(plain(CAVEAT), soft_wrap=True)


def _point(curve: list[dict[str, Any]], level: int) -> str:
    for point in curve:
        if point["budget"] == level:
            found = Estimate(*(point[name] for name in ("value", "low", "high", "n")))
            low, high = SHARE.digits(found.low, 0), SHARE.digits(found.high, 0)
            return f"{SHARE.digits(found.value)} [{low}, {high}] %"
    return "-"
