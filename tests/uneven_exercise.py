"""The worker of an exercise (see `causal_core.run.exercise`) with long answers on one worker alone.

Of each global batch one worker gets a triplet with a long prompt, the other one two triplets whose
answers need a chunk of labels each.
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import replace
from pathlib import Path

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


plain_triplets = exercise_module._triplets

if __name__ == "__main__":
    exercise_module._triplets = uneven_triplets
    exercise_module.run_worker(json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2]))
