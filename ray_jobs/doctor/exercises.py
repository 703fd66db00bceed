"""Which engines and quantisations work on this machine: a two-step micro job of each."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray_jobs.doctor.check import Check

STEPS = 2
_TIMEOUT = 120.0


@dataclass(frozen=True)
class Setting:
    """What one micro job runs with, and what to do where it fails."""

    name: str
    workers: int
    advice: str
    sections: dict[str, Any] = field(default_factory=dict)


_TORCH = "torch or transformers is broken here: reinstall with -c constraints.txt"
_BITSANDBYTES = (
    "reinstall bitsandbytes with -c constraints.txt (its CUDA library must match torch's), or set "
)
_GROUP = (
    "worker processes cannot reach each other: look at firewall and host name, or name the "
    "interface in GLOO_SOCKET_IFNAME (NCCL_SOCKET_IFNAME on GPUs)"
)
_DEEPSPEED = "reinstall deepspeed with -c constraints.txt, or set engine=ddp"


def _zero(stage: int, **more: Any) -> dict[str, Any]:
    return {"engine": "deepspeed", "deepspeed": {"zero_stage": stage, **more}}


def settings(on_gpu: bool) -> list[Setting]:
    """The micro jobs for a machine with or without GPUs."""
    nf4 = {"model": {"quantization": "nf4"}}
    small = "paged_adamw_8bit" if on_gpu else "adamw_8bit"
    return [
        Setting("plain", 1, _TORCH),
        Setting("plain, bfloat16", 1, "set model.dtype=float32", {"model": {"dtype": "bfloat16"}}),
        Setting("plain, nf4", 1, _BITSANDBYTES + "model.quantization=none", nf4),
        Setting(
            f"plain, {small}",
            1,
            _BITSANDBYTES + "train.optimizer=adamw",
            {"train": {"optimizer": small}},
        ),
        Setting("ddp", 2, _GROUP, {"engine": "ddp"}),
        Setting("ddp, nf4", 2, _GROUP, {"engine": "ddp", **nf4}),
        *(Setting(f"deepspeed ZeRO-{stage}", 2, _DEEPSPEED, _zero(stage)) for stage in (1, 2, 3)),
        Setting("deepspeed ZeRO-2, nf4", 2, _DEEPSPEED, {**_zero(2), **nf4}),
        Setting("deepspeed ZeRO-2, offload", 2, _DEEPSPEED, _zero(2, offload_optimizer=True)),
    ]


def engine_checks() -> Iterator[Check]:
    """Runs every setting in processes of its own, on GPUs where there are enough."""
    import torch

    from causal_core.run.exercise import Exercise, exercise_config, run_exercises, write_base
    from ray_jobs.doctor.check import Check

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    with tempfile.TemporaryDirectory(prefix="causal-doctor-") as folder:
        directory = Path(folder)
        base = write_base(directory / "base")
        for workers in (1, 2):
            device = "cuda" if gpus >= workers else "cpu"
            group = [s for s in settings(device == "cuda") if s.workers == workers]
            exercises = [
                Exercise(
                    setting.name,
                    exercise_config(base, **setting.sections, resources={"workers": workers}),
                    last=STEPS,
                )
                for setting in group
            ]
            where = f"{workers} worker{'s' if workers > 1 else ''} on {device}"
            for setting, result in zip(
                group, run_exercises(exercises, directory, workers, device, _TIMEOUT), strict=True
            ):
                if result.error is None and all(result.applied):
                    found = f"{STEPS} steps, {where}, {result.seconds:.1f} s"
                    yield Check("engines", setting.name, "ok", found)
                else:
                    found = f"{where}: {result.error or 'the loss is not finite'}"
                    yield Check("engines", setting.name, "failed", found, setting.advice)
