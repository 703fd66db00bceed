"""`causal verify-resume`: the check before a long job that an interrupted run loses nothing."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from causal_core.checkpoints.contents import ADAPTER, OPTIMIZER, PROJECTION, tensor_sha256
from causal_core.checkpoints.store import CheckpointStore
from causal_core.config import Config
from causal_core.config_file import parse_config
from causal_core.errors import UserError
from causal_core.files import METRICS_FILE
from causal_core.tokens.run_data import load_run_data, step_plan
from ray_jobs.training.process import worker_process
from ray_jobs.training.ray_session import ray_session
from ray_jobs.training.trainer import CHECKPOINTS, fit


@dataclass(frozen=True)
class Comparison:
    """One part of the final state of the straight and the interrupted run."""

    part: str
    tensors: int
    identical: int
    largest_difference: float

    @property
    def same(self) -> bool:
        return self.tensors == self.identical


def verify_resume(config: Config, steps: int) -> list[Comparison]:
    """Trains `steps` optimizer steps straight, and again with a restart in the middle.

    Both run in a temporary directory with the engine, workers and data of `config`.

    Raises:
        UserError: fewer than 2 steps, or the data does not give that many.
    """
    config = config.with_absolute_paths()
    if steps < 2:
        raise UserError(f"--steps {steps}: a restart in the middle needs at least 2")
    possible = step_plan(config, len(load_run_data(config).train)).total_steps
    if steps > possible:
        raise UserError(f"--steps {steps}: this config has {possible} optimizer steps in all")
    with (
        contextlib.ExitStack() as stack,
        tempfile.TemporaryDirectory(prefix="causal-verify-") as folder,
    ):
        # One start for all runs; each of them would have one of its own.
        if stack.enter_context(worker_process(config)) is None and config.resources.max_workers:
            stack.enter_context(ray_session(config))
        straight = _variant(config, Path(folder) / "straight", steps)
        resumed = _variant(config, Path(folder) / "resumed", steps)
        fit(straight)
        fit(resumed, stop_at=steps // 2)
        fit(resumed)
        return _compare(Path(straight.run.dir), Path(resumed.run.dir))


def show_comparisons(console: Console, comparisons: list[Comparison], steps: int) -> None:
    """The outcome as a table and a sentence."""
    table = Table(title=f"{steps} steps straight against {steps // 2} + restart + the rest")
    for heading in ("", "tensors", "identical", "largest difference"):
        table.add_column(heading, justify="right" if heading else "left")
    for item in comparisons:
        table.add_row(
            item.part, str(item.tensors), str(item.identical), f"{item.largest_difference:.1e}"
        )
    console.print(table)
    if all(item.same for item in comparisons):
        console.print("A resume is exact here: every tensor and metric is bit-identical.")
    else:
        console.print(
            "A resume is NOT bit-identical here. Small differences come from kernels that add in "
            "varying order (on a GPU; train.deterministic=true avoids them) and from several "
            "workers; large ones are a defect."
        )


def _variant(config: Config, directory: Path, steps: int) -> Config:
    tree = config.model_dump(mode="json")
    tree["run"]["dir"] = str(directory)
    tree["train"]["max_steps"] = steps
    tree["checkpoint"].update(every_steps=steps, storage=None, patience=None)
    tree["logging"]["trackers"] = []
    # Validation draws nothing at random and would only take time.
    tree["data"]["limit_validation"] = 2
    return parse_config(tree)


def _compare(straight: Path, resumed: Path) -> list[Comparison]:
    stores = [CheckpointStore(str(run / CHECKPOINTS)) for run in (straight, resumed)]
    with stores[0].newest_whole() as one, stores[1].newest_whole() as two:
        assert one is not None and two is not None
        found = [
            _compare_tensors(name, load_file(one / file), load_file(two / file))
            for name, file in (
                ("adapter", ADAPTER),
                ("projection head", PROJECTION),
                ("optimizer state", OPTIMIZER),
            )
        ]
    # The interrupted run validates once more, at the step where it stopped.
    lines = [
        [
            line
            for line in (run / METRICS_FILE).read_text().splitlines()
            if '"kind": "train"' in line
        ]
        for run in (straight, resumed)
    ]
    same = sum(a == b for a, b in zip(*lines, strict=False))
    found.append(Comparison("metrics.jsonl (lines)", max(map(len, lines)), same, 0.0))
    return found


def _compare_tensors(name: str, one: dict[str, Any], two: dict[str, Any]) -> Comparison:
    names = one.keys() | two.keys()
    identical, largest = 0, 0.0
    for key in names:
        if key not in one or key not in two or one[key].shape != two[key].shape:
            largest = float("inf")
        elif tensor_sha256(one[key]) == tensor_sha256(two[key]):
            identical += 1
        else:
            difference = (one[key].double() - two[key].double()).abs().max()
            largest = max(largest, float(difference))
    return Comparison(name, len(names), identical, largest)
