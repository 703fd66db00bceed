"""A trial worker (see `causal_core.engines.trial`) that alone sees what is not finite.

The last worker's loss is NaN in step 2, and in step 4 infinite by a constant, which leaves all
gradients finite.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from causal_core import step as step_module
from causal_core.engines import trial

NAN_STEP, INFINITE_STEP = 2, 4


def poison() -> None:
    plain_sums, plain_run, count = step_module.loss_sums, step_module.TrainStep.run, [-1]

    def run(self, *arguments, **keywords):
        count[0] = count[0] + 1 if self is getattr(run, "last", None) else 0
        run.last = self
        return plain_run(self, *arguments, **keywords)

    def loss_sums(*arguments):
        sums = plain_sums(*arguments)
        if count[0] == NAN_STEP:
            sums["task"] = sums["task"] * float("nan")
        elif count[0] == INFINITE_STEP:
            sums["task"] = sums["task"] + float("inf")
        return sums

    step_module.loss_sums = loss_sums
    step_module.TrainStep.run = run


if __name__ == "__main__":
    job, rank = json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2])
    if rank == job["workers"] - 1:
        poison()
    trial.run_worker(job, rank)
