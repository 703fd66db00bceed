"""Do all engines compute the same? Parity and cross-engine resume, on real processes.

    python -m benchmarks.engines [--directory DIR]

The tiny job of `causal_core.run.exercise`, in float64, with clipping in every step, 6 optimizer
steps. *Parity*: each engine against one plain worker with the same base, every worker cutting its
share into other micro-batches. *Resume*: 3 steps under the engine of the row, a checkpoint, 3
steps under the engine of the column, against 6 uninterrupted steps of one plain worker; on the
diagonal also against that engine's own uninterrupted run, where it must be identical.

In float32 the difference would be the processor's: AdamW moves an element whose gradient is all but
zero by its sign, so the last bit of a sum decides. ZeRO sums gradients and moves weights in float32
all the same. bitsandbytes knows no float64; there the elements that differ most are left out
(`TRIM`).
"""

from __future__ import annotations

import argparse
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

from causal_core.run.exercise import (
    Exercise,
    ExerciseResult,
    exercise_config,
    run_exercises,
    write_base,
)
from ray_jobs.console.quiet import quiet_libraries

STEPS, HALF = 6, 3
TRIM = 0.01  # share of a tensor's elements whose gradient float32 rounding may leave without a sign


@dataclass(frozen=True)
class Case:
    """One engine in one setting; `tokens` differ so that micro-batches are cut differently."""

    engine: str
    workers: int
    tokens: int
    stage: int | None = None
    more: tuple[tuple[str, Any], ...] = ()  # further sections of the config
    label: str = ""
    double: bool = True  # computes in float64
    attacks: int = 1

    @property
    def name(self) -> str:
        stem = f"zero-{self.stage}" if self.stage else self.engine
        return f"{stem}@{self.workers}{self.label}"

    def exercise(self, base: Path, name: str, **options: Any) -> Exercise:
        sections: dict[str, Any] = {k: dict(v) for k, v in self.more}
        sections.setdefault("train", {})["micro_batch_tokens"] = self.tokens
        sections["resources"] = {"workers": self.workers}
        if self.stage:
            sections.setdefault("deepspeed", {})["zero_stage"] = self.stage
        config = exercise_config(base, engine=self.engine, **sections)
        return Exercise(name, config, double=self.double, attacks=self.attacks, **options)


PLAIN = Case("plain", 1, 400)
ENGINES = (
    PLAIN,
    Case("ddp", 2, 120),
    Case("deepspeed", 2, 90, 1),
    Case("deepspeed", 2, 150, 2),
    Case("deepspeed", 2, 100, 3),
)
_CHECKPOINTING = ("train", (("gradient_checkpointing", True),))
_OFFLOAD = ("deepspeed", (("offload_optimizer", True),))
_SMALL_BUCKET = ("deepspeed", (("reduce_bucket_size", 1024),))
_NF4 = ("model", (("quantization", "nf4"),))
_8BIT = ("train", (("optimizer", "adamw_8bit"),))
VARIANTS = (
    Case("plain", 1, 90, label=", more micro-batches"),
    Case("ddp", 2, 100, None, (_CHECKPOINTING,), ", gradient checkpointing"),
    Case("deepspeed", 2, 100, 2, (_CHECKPOINTING,), ", gradient checkpointing"),
    Case("deepspeed", 2, 100, 3, (_CHECKPOINTING,), ", gradient checkpointing"),
    Case("deepspeed", 2, 90, 1, (_OFFLOAD,), ", offload"),
    Case("deepspeed", 2, 90, 2, (_OFFLOAD,), ", offload"),
    Case("deepspeed", 2, 90, 3, (_OFFLOAD,), ", offload"),
    Case("deepspeed", 2, 90, 2, (_SMALL_BUCKET,), ", small bucket"),
    Case("deepspeed", 1, 90, 2, (_OFFLOAD,), ", offload"),
)
_EVERY_TERM = (
    "loss",
    (
        ("lambda_robust", 1.0),
        ("lambda_invariance", 0.5),
        ("lambda_preference", 1.0),  # with `anchor`, a forward without the adapter before each step
        ("lambda_anchor", 0.5),
        ("worst_case", 0.5),
    ),
)
EVERY_TERM_PLAIN = Case("plain", 1, 400, None, (_EVERY_TERM,), ", every term", attacks=3)
EVERY_TERM = tuple(
    Case(case.engine, 2, case.tokens, case.stage, (_EVERY_TERM,), ", every term", attacks=3)
    for case in ENGINES[1:]
)
NF4_PLAIN = Case("plain", 1, 400, None, (_NF4,), ", nf4", double=False)
NF4 = (
    Case("ddp", 2, 120, None, (_NF4,), ", nf4", double=False),
    Case(
        "ddp", 2, 120, None, (_NF4, _CHECKPOINTING), ", nf4, gradient checkpointing", double=False
    ),
    Case("deepspeed", 2, 90, 1, (_NF4,), ", nf4", double=False),
    Case("deepspeed", 2, 150, 2, (_NF4,), ", nf4", double=False),
)
EIGHT_BIT_PLAIN = Case("plain", 1, 400, None, (_8BIT,), ", adamw_8bit", double=False)
EIGHT_BIT = (Case("ddp", 2, 120, None, (_8BIT,), ", adamw_8bit", double=False),)


def difference(found: Path, expected: Path, trim: float = 0.0) -> float:
    """Largest over tensors of ||found - expected|| / ||expected||, in float64.

    Args:
        trim: The share of each tensor's elements that is left out, those that differ most.
    """
    got, want = load_file(found), load_file(expected)
    assert got.keys() == want.keys()
    errors = [0.0]
    for name, tensor in want.items():
        apart = (got[name].double() - tensor.double()).abs().flatten().sort().values
        if math.isfinite(apart[-1]):  # what is no number comes last, and is never left out
            apart = apart[: len(apart) - math.ceil(trim * len(apart))]
        errors.append(float(apart.norm() / (tensor.double().norm() or 1.0)))
    return float(np.max(errors))  # NaN where there is one, which Python's max would pass over


def run_cases(
    cases: tuple[Case, ...], base: Path, directory: Path, **options: Any
) -> dict[str, ExerciseResult]:
    """Runs cases from start to end, those with as many workers in the same processes."""
    results = {}
    for workers in sorted({case.workers for case in cases}):
        group = [case for case in cases if case.workers == workers]
        exercises = [case.exercise(base, case.name, **options) for case in group]
        for result in run_exercises(exercises, directory, workers):
            results[result.name] = result
    return results


def parity(
    reference: Case, cases: tuple[Case, ...], base: Path, directory: Path
) -> dict[str, float | str]:
    """Largest relative difference of each case to the reference after `STEPS` steps."""
    results = run_cases((reference, *cases), base, directory)
    expected = _weights(directory, reference.name)
    trim = 0.0 if reference.double else TRIM
    return {
        case.name: results[case.name].error
        or difference(_weights(directory, case.name), expected, trim)
        for case in (reference, *cases)
    }


def resume_matrix(
    engines: tuple[Case, ...], base: Path, directory: Path
) -> dict[tuple[str, str], float | str]:
    """Difference to the uninterrupted plain run by (saved under, resumed under)."""
    saved = {case.name: str(directory / f"checkpoint-{case.name}") for case in engines}
    straight = run_cases(engines, base, directory)
    assert straight[engines[0].name].error is None, straight[engines[0].name].error
    found: dict[tuple[str, str], float | str] = {}
    for workers in sorted({case.workers for case in engines}):
        group = [case for case in engines if case.workers == workers]
        halves = [
            case.exercise(base, f"half-{case.name}", last=HALF, save=saved[case.name])
            for case in group
        ]
        run_exercises(halves, directory, workers)
    for workers in sorted({case.workers for case in engines}):
        pairs = [(a, b) for b in engines if b.workers == workers for a in engines]
        exercises = [
            b.exercise(base, f"{a.name} to {b.name}", first=HALF, resume=saved[a.name])
            for a, b in pairs
        ]
        for (a, b), result in zip(pairs, run_exercises(exercises, directory, workers), strict=True):
            found[a.name, b.name] = result.error or difference(
                _weights(directory, result.name), _weights(directory, engines[0].name)
            )
            if a is b and result.error is None:
                own = difference(_weights(directory, result.name), _weights(directory, a.name))
                found[a.name, f"{a.name}, own run"] = own
    return found


def _weights(directory: Path, name: str) -> Path:
    return directory / f"{name}.safetensors"


def _shown(value: float | str) -> str:
    if isinstance(value, str):
        return f"failed: {value}"
    return "identical" if value == 0 else f"{value:.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--directory", type=Path, help="Keep all weights and checkpoints here.")
    chosen = parser.parse_args()
    quiet_libraries()
    with tempfile.TemporaryDirectory(prefix="causal-engines-") as folder:
        directory = chosen.directory or Path(folder)
        base = write_base(directory / "base")
        print(f"Parity: max relative difference after {STEPS} steps, against plain@1")
        for reference, cases in (
            (PLAIN, (*ENGINES[1:], *VARIANTS)),
            (EVERY_TERM_PLAIN, EVERY_TERM),
            (NF4_PLAIN, NF4),
            (EIGHT_BIT_PLAIN, EIGHT_BIT),
        ):
            for name, value in parity(reference, cases, base, directory).items():
                print(f"  {name:40} {_shown(value)}")
        print("\nResume: saved under the row, continued under the column, against plain@1")
        found = resume_matrix(ENGINES, base, directory)
        names = [case.name for case in ENGINES]
        print(" " * 10 + "".join(f"{name:>12}" for name in names) + f"{'own run':>12}")
        for a in names:
            cells = [found[a, b] for b in names] + [found[a, f"{a}, own run"]]
            print(f"{a:10}" + "".join(f"{_shown(cell):>12}" for cell in cells))


if __name__ == "__main__":
    main()
