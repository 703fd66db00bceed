"""`causal demo`: the main job on the built-in data and model, with the control that it needs.

The control is trained on the same benign data with the same settings and no defence. Benign
training alone changes how a small model answers, so before/after without it would prove nothing.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console

from causal_core.config import Config
from causal_core.config_file import parse_config
from causal_core.data.writer import to_table, write_triplets
from causal_core.device import available_cores, device_memory_bytes
from causal_core.evaluation.metrics import TRAINED
from causal_core.files import BEST, SUMMARY
from causal_core.generator.generate import generate_dataset
from causal_core.model.device_costs import Measurements, takes_bfloat16
from causal_core.pretrained.loading import resolve_model
from causal_core.report.recorded import read_summary
from causal_core.run.lock import only_writer
from causal_core.run.session import MEASUREMENTS
from ray_jobs.beside import PROGRAMS, beside, on_tests
from ray_jobs.console.plain import plain
from ray_jobs.console.progress import evaluation_progress
from ray_jobs.console.result import show_result
from ray_jobs.evaluate import PROGRESS, evaluated_rows, expected_progress
from ray_jobs.run import run_evaluation, run_training
from ray_jobs.training.process import runs_alone, worker_process

CONFIG = Path(__file__).parent / "presets" / "demo.yaml"
_BYTES_OF_TWO = 7 * 2**30  # each took 2.4 GB at its peak, beside what its driver takes
_SIZES = {"train": 480, "validation": 32, "test_seen": 72, "test_novel": 72}


def run_demo(directory: Path, *, seed: int = 0, fresh: bool = False) -> None:
    """Generates data, trains control and defended model, evaluates, reports."""
    console = Console()
    directory = directory.resolve()
    with only_writer(directory, fresh=fresh) as moved:
        if moved is not None:
            console.print(plain(f"The earlier demo is now in {moved}"))
        _run_demo(directory, seed, console)


def _run_demo(directory: Path, seed: int, console: Console) -> None:
    started = time.monotonic()
    data = directory / "data" / f"seed-{seed}"
    _say(console, 1, f"data: {sum(_SIZES.values())} triplets in {data}")
    _generate(data, seed)
    control = _config(directory / "control", data, seed, "task_only")
    defended = _config(directory / "defended", data, seed, "default")
    if (earlier := _finished(defended)) is not None:
        console.print("This demo is finished already; --fresh starts over.")
        show_result(console, directory / "defended", earlier)
        return
    work = _side_by_side if _has_room_for_two(defended) else _one_by_one
    result = work(control, defended, console)
    show_result(console, directory / "defended", result)
    console.print(plain(_products(directory / "defended", result["evaluation"]["matmul"])))
    console.print(f"The demo took {(time.monotonic() - started) / 60:.1f} minutes.")


def _one_by_one(control: Config, defended: Config, console: Console) -> dict[str, Any]:
    with worker_process(defended):  # one for all: its start is paid once
        _say(console, 2, "control: the same benign training without a defence")
        run_training(control, console, test=False)
        _say(console, 3, "defended: with the default loss")
        run_training(defended, console, test=False, report=False)
        _say(console, 4, "evaluation: base, control and defended on held-out attacks")
        return run_evaluation(Path(defended.run.dir), console, {"control": Path(control.run.dir)})


def _side_by_side(control: Config, defended: Config, console: Console) -> dict[str, Any]:
    """The control, whose training is the shorter one, is evaluated with the base meanwhile; what is
    left at the end are the defended model's test sets, which both processes take a part of."""
    control_dir, directory = Path(control.run.dir), Path(defended.run.dir)
    log = directory.parent / "control.log"
    resolve_model(defended.model, defended.data.cache_dir)  # made once
    _say(console, 2, f"control: the same benign training without a defence, beside step 3 ({log})")
    asked = {"base": None, "control": control_dir / BEST}

    def told(failure: str) -> None:
        text = f"{failure}. The training of the defended model goes on, and the demo ends after it."
        console.print(plain(text, lines=True), style="yellow")

    with beside(control, asked, log, told) as process, worker_process(defended):
        _say(console, 3, "defended: with the default loss")
        run_training(defended, console, test=False, report=False)
        _say(console, 4, "evaluation: base, control and defended on held-out attacks")
        tests, trained = list(defended.data.test), {TRAINED: directory / BEST}
        half = len(tests) // 2 if process.is_free() else 0
        if half:
            process.evaluate(tests[:half], trained)
        own = on_tests(defended, tests[half:])
        with evaluation_progress(console, directory / PROGRESS, expected_progress(own, 1)):
            known = evaluated_rows(own, trained)
        for found in process.found():
            known = known.joined(found)
        return run_evaluation(directory, console, {"control": control_dir}, known=known)


def _has_room_for_two(config: Config) -> bool:
    """Whether two trainings at a time have a core each, and memory."""
    free = device_memory_bytes(torch.device("cpu"))
    return runs_alone(config) and available_cores() >= PROGRAMS and free >= _BYTES_OF_TWO


def _say(console: Console, number: int, text: str) -> None:
    console.print(plain(f"{number}/4 {text}"), style="bold", soft_wrap=True)


def _products(run: Path, evaluated: str) -> str:
    """In which type a finished run multiplied, as `train.matmul=auto` chose, and its evaluation."""
    measured = Measurements.read(run / MEASUREMENTS)
    speed = None if measured is None else measured.bfloat16_speed
    if not takes_bfloat16("auto", speed):
        return f"Trained in float32, evaluated in {evaluated}."
    return (
        f"Trained with products in bfloat16, {speed:.1f} times as fast as float32 on this "
        f"processor (train.matmul=auto, docs/cpu.md), and evaluated in {evaluated}."
    )


def _generate(data: Path, seed: int) -> None:
    if all((data / f"{split}.jsonl").is_file() for split in _SIZES):
        return
    for split, triplets in generate_dataset(_SIZES, seed).items():
        write_triplets(to_table(triplets), data / f"{split}.jsonl", overwrite=True)


def _finished(config: Config) -> dict[str, Any] | None:
    """The result of an earlier demo with this very config and an evaluation beside the control."""
    if not (Path(config.run.dir) / SUMMARY).is_file():
        return None
    result = read_summary(Path(config.run.dir), ended=True)
    evaluated = "control" in (result["evaluation"] or {"models": {}})["models"]
    same = parse_config(result["config"]).fingerprint() == config.fingerprint()
    return result if evaluated and same and result["status"] == "finished" else None


def _config(directory: Path, data: Path, seed: int, preset: str) -> Config:
    tree = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    tree["run"] = {"dir": str(directory), "seed": seed}
    tree["data"] = {
        "train": str(data / "train.jsonl"),
        "validation": str(data / "validation.jsonl"),
        "test": {name: str(data / f"test_{name}.jsonl") for name in ("seen", "novel")},
    }
    tree["loss"] = {"preset": preset}
    return parse_config(tree)
