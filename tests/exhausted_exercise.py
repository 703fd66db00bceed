"""The worker of an exercise (see `causal_core.run.exercise`) whose memory runs out once, alone.

In exercises whose name begins with `exhausted` the last worker fails in the backward of the first
micro-batch that is not the last one of its step, and leaves `exhausted.txt` beside the job file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from causal_core.engines.ddp import DdpEngine
from causal_core.run import exercise as exercise_module


def exhaust_last_worker(marker: Path) -> None:
    plain_exercise, plain_accumulate = exercise_module.run_exercise, DdpEngine.accumulate
    exhausts = False

    def run_exercise(exercise, *arguments):
        nonlocal exhausts
        exhausts = exercise.name.startswith("exhausted")
        return plain_exercise(exercise, *arguments)

    def accumulate(self, batch, loss_of, last):
        nonlocal exhausts
        plain_accumulate(self, batch, loss_of, last)
        if exhausts and not last:
            exhausts = False
            marker.write_text(str(batch.input_ids.numel()))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    exercise_module.run_exercise, DdpEngine.accumulate = run_exercise, accumulate


if __name__ == "__main__":
    job, rank = json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2])
    if rank == job["workers"] - 1:
        exhaust_last_worker(Path(job["directory"]) / "exhausted.txt")
    exercise_module.run_worker(job, rank)
