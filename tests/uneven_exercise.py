"""Workers (see `odd_exercises.py`) of which one alone has long answers.

In exercises whose name begins with `uneven`, of each global batch one worker gets a triplet with a
long prompt, the other one two triplets whose answers need a chunk of labels each.
"""

from __future__ import annotations

import random
from dataclasses import replace

from causal_core.run import exercise as exercise_module
from causal_core.trees.labels import LABELS_AT_ONCE

LONG_ANSWER = LABELS_AT_ONCE * 3 // 4  # two of them are more than a chunk
LONG_PROMPT = 4 * LABELS_AT_ONCE


def uneven_triplets(attacks: int = 1):
    """Those of the exercise with three of each global batch made long."""
    rng = random.Random(1)

    def ids(count: int) -> list[int]:
        return [rng.randrange(3, exercise_module.VOCABULARY) for _ in range(count)]

    triplets = plain_triplets(attacks)
    for start in range(0, len(triplets), exercise_module.GLOBAL_BATCH):
        triplets[start] = replace(triplets[start], benign=ids(LONG_PROMPT))
        for number in (start + 1, start + 2):
            triplets[number] = replace(triplets[number], benign_answer=ids(LONG_ANSWER))
    return triplets


def lengthen() -> None:
    plain_exercise = exercise_module.run_exercise

    def run_exercise(exercise, *arguments):
        uneven = exercise.name.startswith("uneven")
        exercise_module._triplets = uneven_triplets if uneven else plain_triplets
        return plain_exercise(exercise, *arguments)

    exercise_module.run_exercise = run_exercise


plain_triplets = exercise_module._triplets
