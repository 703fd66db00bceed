"""A worker (see `odd_exercises.py`) that alone sees what is not finite.

In exercises whose name begins with `poisoned` the last worker's loss is NaN in step 2, and in
step 4 infinite by a constant, which leaves all gradients finite.
"""

from __future__ import annotations

from causal_core.run import exercise as exercise_module
from causal_core.step import train_step as step_module

NAN_STEP, INFINITE_STEP = 2, 4


def poison_last_worker() -> None:
    plain_exercise, plain_step = exercise_module.run_exercise, step_module.TrainStep.run
    plain_loss = step_module.micro_batch_loss
    step = 0

    def run_exercise(exercise, *arguments):
        nonlocal step
        step = -1 if exercise.name.startswith("poisoned") else -1_000
        return plain_exercise(exercise, *arguments)

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

    exercise_module.run_exercise, step_module.TrainStep.run = run_exercise, run_step
    step_module.micro_batch_loss = micro_batch_loss
