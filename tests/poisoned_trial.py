"""A trial worker (see `causal_core.run.trial`) that alone sees what is not finite.

In trials whose name begins with `poisoned` the last worker's loss is NaN in step 2, and in step 4
infinite by a constant, which leaves all gradients finite.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from causal_core.run import trial as trial_module
from causal_core.step import train_step as step_module

NAN_STEP, INFINITE_STEP = 2, 4


def poison_last_worker() -> None:
    plain_trial, plain_step = trial_module.run_trial, step_module.TrainStep.run
    plain_loss = step_module.micro_batch_loss
    step = 0

    def run_trial(trial, *arguments):
        nonlocal step
        step = -1 if trial.name.startswith("poisoned") else -1_000
        return plain_trial(trial, *arguments)

    def run_step(*arguments, **keywords):
        nonlocal step
        step += 1
        return plain_step(*arguments, **keywords)

    def micro_batch_loss(*arguments):
        value, sums = plain_loss(*arguments)
        if step == NAN_STEP:
            sums["task"] = sums["task"] * float("nan")
            value = value * float("nan")
        elif step == INFINITE_STEP:
            sums["task"] = sums["task"] + float("inf")
        return value, sums

    trial_module.run_trial, step_module.TrainStep.run = run_trial, run_step
    step_module.micro_batch_loss = micro_batch_loss


if __name__ == "__main__":
    job, rank = json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2])
    if rank == job["workers"] - 1:
        poison_last_worker()
    trial_module.run_worker(job, rank)
