"""What each part of the objective and of the data buys: a training for each cell, the same tests.

    python -m benchmarks.ablation [CELL ...] [--outside FILE#SPLIT ...] [--seeds 0 1]
    python -m benchmarks.ablation --table

A cell is a file of `configs/ablation/`. Its run directory is resumed where it was cut, and its
result, a line of `benchmarks/results/ablation.jsonl` with its config and commit, is written when
it ends: an interruption loses one evaluation. Cells with a result are not run again. `base` is the
model before training. All cells see the same rows in the same order (fewer or more of them where
the file says so) and are judged on the same test rows; `--outside` names test sets that this
project did not generate. A cell `without_families` trains on the same rows with attacks of other
families in the place of those, and is judged on rows attacked by just those (`left out ...`), as
the cells are that its comparison needs (`judged_on_left_out`).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.ablation_table import COLUMNS, CONTROL, LEFT_OUT, left_out_table, table
from benchmarks.machine import commit
from causal_core.config import Config
from causal_core.config_file import apply_override, parse_config
from causal_core.data.schema import Triplet
from causal_core.data.writer import to_table, write_triplets
from causal_core.evaluation.rows import RowResult
from causal_core.evaluation.subject import Subject
from causal_core.evaluation.summary import aggregate
from causal_core.files import BEST
from causal_core.generator.compose import PAYLOADS
from causal_core.generator.families import families_of
from causal_core.generator.generate import generate_split
from causal_core.generator.inject import inject
from causal_core.generator.open_work import open_rows
from causal_core.generator.tasks import TASKS
from causal_core.model.device_costs import processor_name
from causal_core.tokens.run_data import load_encoder
from causal_core.yaml_file import read_yaml
from ray_jobs.demo import CONFIG
from ray_jobs.detectors import measure_detectors
from ray_jobs.evaluate import evaluated_rows, subjects_of
from ray_jobs.own_answers import own_answers, with_answers
from ray_jobs.run import run_training

ROOT = Path(__file__).resolve().parents[1]
CELLS = ROOT / "configs" / "ablation"
RESULTS = ROOT / "benchmarks" / "results" / "ablation.jsonl"
BASE = "base"
FIELDS = {
    "about", "loss", "rows", "epochs", "fresh_attacks", "open_rows", "attacks_per_row", "payloads",
    "without_families", "judged_on_left_out", "control", "whole",
}  # fmt: skip
_ROWS = 480  # of training, unless a cell says otherwise
_DETECTED = ("seen", "novel")  # test sets on which detectors are measured
_FITTING_ROWS = 96  # generated for validation: training has neither their words nor wordings
_FALSE_POSITIVES = 0.01
_OPEN_TOKENS = 64  # longer answers to open work are left out
_WITHOUT = "without_"
_HELD_OUT = {task.name for task in TASKS if task.held_out}


def cells() -> dict[str, dict[str, Any]]:
    """What each cell's file says, by its name; the base first."""
    found: dict[str, dict[str, Any]] = {BASE: {"about": "the base before training"}}
    for path in sorted(CELLS.glob("*.yaml")):
        tree = read_yaml(path)
        if unknown := set(tree) - FIELDS:
            raise SystemExit(f"{path}: unknown fields: {', '.join(sorted(unknown))}")
        if "without_families" in tree and not path.stem.startswith(_WITHOUT):
            raise SystemExit(
                f"{path}: a cell without families is named {_WITHOUT}GROUP, as its test set is "
                "named after the group; rename the file"
            )
        found[path.stem] = tree
    return found


def left_out_groups(name: str, cell: Mapping[str, Any]) -> dict[str, list[str]]:
    """The families of each test set of families left out on which a cell is judged."""
    of = cells() if cell.get("judged_on_left_out") else {name: cell}
    return {
        f"{LEFT_OUT}{key.removeprefix(_WITHOUT)}": found["without_families"]
        for key, found in of.items()
        if "without_families" in found
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the cells that have no result yet, then prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("cells", nargs="*", metavar="CELL", help=f"of {', '.join(cells())}")
    parser.add_argument("--outside", nargs="*", default=[], metavar="FILE#SPLIT")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--rows", nargs=2, type=int, default=[60, 120], metavar=("SEEN", "NOVEL"))
    parser.add_argument("--outside-rows", type=int, default=60, help="of each outside set")
    parser.add_argument("--left-out-rows", type=int, default=40,
                        help="of each group of families left out")  # fmt: skip
    parser.add_argument("--directory", type=Path, default=ROOT / "runs" / "ablation")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", dest="settings",
                        help="of every cell's config, e.g. train.matmul=auto")  # fmt: skip
    parser.add_argument("--table", action="store_true", help="only print the table")
    given = parser.parse_args(arguments)
    known = cells()
    if unknown := set(given.cells) - set(known):
        parser.error(f"no cell {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    if not given.table:
        for seed in given.seeds:
            for name in given.cells or known:
                run_cell(name, known[name], seed, given)
    results = read_results()
    print(table(results))
    if compared := left_out_table(results):
        print(f"\n{compared}")


def run_cell(name: str, cell: Mapping[str, Any], seed: int, given: argparse.Namespace) -> None:
    """Trains and evaluates a cell, unless its result is known."""
    sizes = {"seen": given.rows[0], "novel": given.rows[1], "outside": given.outside_rows}
    if left_out_groups(name, cell):
        sizes["left_out"] = given.left_out_rows
    key = {"cell": name, "seed": seed, "sizes": sizes}
    if any({k: row[k] for k in key} == key for row in read_results()):
        return
    data = given.directory / f"data-{seed}"
    config = config_of(name, cell, seed, data, given)
    begin = time.monotonic()
    checkpoint = None
    if name != BASE:
        run_training(config, Console(), test=False)
        checkpoint = Path(config.run.dir) / BEST
    trained = time.monotonic()
    found = evaluated_rows(config, {"trained": checkpoint})
    rows = found.rows["trained"]
    evaluated = time.monotonic()
    detectors = _detectors(config, checkpoint, data, seed)
    result = {
        **key,
        "about": cell["about"],
        "commit": commit(),
        "processor": processor_name(),
        "config": _portable(config.model_dump(mode="json"), given.directory),
        "payloads": cell.get("payloads"),
        "without_families": cell.get("without_families"),
        "control": cell.get("control", CONTROL),
        "whole": cell.get("whole"),
        "train_seconds": round(trained - begin),
        "evaluation_seconds": round(evaluated - trained),
        "evaluation_matmul": found.matmul,
        "tokens": _nodes(config) if checkpoint else 0,
        "sets": {set_name: _figures(found) for set_name, found in rows.items()},
        "succeeded": {
            set_name: [row.id for row in found if row.attack_succeeded]
            for set_name, found in rows.items()
        },
        "detectors": detectors,
        "detector_seconds": round(time.monotonic() - evaluated),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(result) + "\n")


def config_of(
    name: str, cell: Mapping[str, Any], seed: int, data: Path, given: argparse.Namespace
) -> Config:
    """The demo's settings with what the cell changes."""
    tree: dict[str, Any] = read_yaml(CONFIG)
    attacks = cell.get("attacks_per_row", 1)
    tree["run"] = {"dir": str(given.directory / f"{name}-{seed}"), "seed": seed}
    tree["loss"] = cell.get("loss", {})
    tree["resources"] = {"workers": 0}
    tree["checkpoint"] = {"every_steps": 1000}
    tree["data"] = {
        "train": [str(path) for path in _training_rows(data, seed, attacks, cell)],
        "validation": str(_generated(data, "validation", 32, seed)),
        "max_length": 2048,
        "overlong": "drop",
        "attacks_per_row": attacks,
        "fresh_attacks": cell.get("fresh_attacks", False),
        "test": {
            "seen": str(_generated(data, "test_seen", given.rows[0], seed)),
            "novel": str(_generated(data, "test_novel", given.rows[1], seed)),
            **{
                f"outside {place.rpartition('#')[2]}": str(_outside(data, place, given))
                for place in given.outside
            },
            **{
                group: str(_left_out(data, families, seed, given))
                for group, families in left_out_groups(name, cell).items()
            },
        },
    }
    tree["evaluation"] = {"max_new_tokens": 24, "own_margin": True}
    tree["train"]["micro_batch_tokens"] = 4096
    tree["train"]["matmul"] = "float32"  # on every processor, unless --set says otherwise
    tree["train"]["epochs"] = cell.get("epochs", 1)
    for setting in given.settings:
        apply_override(tree, setting)
    return parse_config(tree)


def _training_rows(data: Path, seed: int, attacks: int, cell: Mapping[str, Any]) -> list[Path]:
    rows, payloads = cell.get("rows", _ROWS), cell.get("payloads")
    without = cell.get("without_families", ())
    kinds = "all" if payloads is None else "-".join(payloads)
    named = "".join(f"-no_{family}" for family in without)
    path = data / f"train-{rows}x{attacks}-{kinds}{named}.jsonl"
    generated = _written(
        path, lambda: generate_split("train", rows, seed, attacks, payloads or PAYLOADS, without)
    )
    if not (wanted := cell.get("open_rows", 0)):
        return [generated]
    path = data / f"open-{wanted}x{attacks}.jsonl"
    return [generated, _written(path, lambda: _open_work(data, wanted, attacks, seed))]


def _open_work(data: Path, wanted: int, attacks: int, seed: int) -> list[Triplet]:
    """Open work with the base's own answers; every second row of it is attacked."""
    asked = list(open_rows(wanted, seed))
    tree = {**read_yaml(CONFIG), "data": {"train": "none"}, "run": {"dir": str(data)}}
    config = parse_config(tree)
    answers = own_answers(
        asked, config, Subject(BASE, config), data / "open.part", _OPEN_TOKENS, _said
    )
    answered = with_answers(asked, answers, load_encoder(config)).rows
    plain, attacked = answered[::2], answered[1::2]
    # Its other splits are of no use here: the test sets are the same for all cells.
    made = inject(attacked, attacks=attacks, validation=0.03, test=0.06, seed=seed, by_prompt=False)
    return [*plain, *made.splits["train"]]


def _said(done: int, of: int) -> None:
    print(f"{done:,} of {of:,} answers to open work", flush=True)


def _generated(data: Path, split: str, rows: int, seed: int) -> Path:
    return _written(data / f"{split}-{rows}.jsonl", lambda: generate_split(split, rows, seed))


def _left_out(data: Path, families: Sequence[str], seed: int, given: argparse.Namespace) -> Path:
    """Rows attacked by these families, in wordings that no training has.

    They are those that follow the rows of the set `seen`: no row is in two test sets.
    """
    wanted, first = given.left_out_rows, given.rows[0]
    # Every family has one row of each round over all of them.
    enough = first + (wanted + 1) * len(families_of("test_seen"))

    def rows() -> Iterator[Triplet]:
        later = islice(generate_split("test_seen", enough, seed), first, None)
        return islice((row for row in later if row.only.attack_family in families), wanted)

    return _written(data / f"left_out-{'-'.join(families)}-{first}-{wanted}.jsonl", rows)


def _outside(data: Path, place: str, given: argparse.Namespace) -> Path:
    """Rows of another's file, evenly through it."""
    from causal_core.data.reader import read_triplets

    rows = list(read_triplets(place).triplets())
    step = max(1, len(rows) // given.outside_rows)
    name = place.rpartition("#")[2]
    return _written(
        data / f"outside-{name}-{given.outside_rows}.jsonl",
        lambda: rows[::step][: given.outside_rows],
    )


def _written(path: Path, rows: Callable[[], Iterable[Triplet]]) -> Path:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_triplets(to_table(list(rows())), path)
    return path


def _figures(rows: Sequence[RowResult]) -> dict[str, Any]:
    """The set's metrics, and benign quality on work that training never has."""
    benign = [row for row in rows if row.injection in (0, None)]
    parts = {
        "trained_work": [row for row in benign if row.task not in _HELD_OUT],
        "untrained_work": [row for row in benign if row.task in _HELD_OUT],
    }
    found = aggregate(rows)
    of_parts = {name: aggregate(part)["benign_exact"] for name, part in parts.items() if part}
    kept = (*COLUMNS, "own_is_attacked", "benign_contained", "benign_f1", "n")
    return {key: found[key] for key in kept} | of_parts


def _detectors(config: Config, checkpoint: Path | None, data: Path, seed: int) -> dict[str, Any]:
    """What is read off the model's representations tells of attacks (docs/guard.md), beside what
    a prompt's length and words tell; the projection head only where a loss term trained it."""
    [subject] = subjects_of(config, {"trained": checkpoint})
    fit = _generated(data, "validation", _FITTING_ROWS, seed)
    tests = {name: config.data.test[name] for name in _DETECTED}
    measured = measure_detectors(subject, config, [str(fit)], tests, _FALSE_POSITIVES)
    return {
        "fitted_on": {"split": "validation", "rows": _FITTING_ROWS},
        "sets": {name: measured.figures(name) for name in tests},
    }


def _nodes(config: Config) -> int:
    """Tree nodes that training computed, by the run's own record."""
    lines = (Path(config.run.dir) / "performance.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [json.loads(line) for line in lines]
    return round(
        sum(s["nodes_per_second"] * s["seconds"] for s in steps if "nodes_per_second" in s)
    )


def _portable(tree: Any, directory: Path) -> Any:
    """Paths of this checkout as they are in any."""
    text = json.dumps(tree).replace(f"{directory}/", "runs/ablation/")
    return json.loads(text.replace(f"{ROOT}/", ""))


def read_results() -> list[dict[str, Any]]:
    """The committed results, in the order in which they came."""
    if not RESULTS.exists():
        return []
    return [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main()
