"""A worker (see `odd_exercises.py`) that alone begins with other weights.

In exercises whose name begins with `unlike` the last worker's adapter and head are off by one, and
so is the first row of its embedding, a token that no triplet has: nothing is computed from it. At
the end the worker leaves `base.txt` beside the job file: how far that row is from what it read.
"""

from __future__ import annotations

from pathlib import Path

import torch

from causal_core.model import causal_model
from causal_core.run import exercise as exercise_module


def begin_elsewhere(marker: Path) -> None:
    plain_build, plain_exercise = causal_model.build_model, exercise_module.run_exercise
    embedding = read = None
    chosen = False

    @torch.no_grad()
    def build_model(base, *arguments):
        nonlocal embedding, read
        model = plain_build(base, *arguments)
        if not chosen:
            return model
        embedding = base.get_input_embeddings().weight
        read = embedding[0].clone()
        for weight in (embedding[0], *model.trainable_parameters().values()):
            weight += 1.0
        return model

    def run_exercise(exercise, *arguments):
        nonlocal chosen
        chosen = exercise.name.startswith("unlike")
        result = plain_exercise(exercise, *arguments)
        if chosen:
            marker.write_text(str(float((embedding[0] - read).min())))
        return result

    causal_model.build_model, exercise_module.run_exercise = build_model, run_exercise
