"""What goes wrong only where two workers differ. Real processes, gloo."""

from __future__ import annotations

import pytest
import torch

from benchmarks.engines import difference
from causal_core.loss.objective import needs_of
from causal_core.run import exercise as exercise_module
from causal_core.run.exercise import (
    HIDDEN,
    Exercise,
    exercise_config,
    run_exercise,
    run_exercises,
    write_base,
)
from causal_core.trees.packing import FLAT, cut_micro_batches
from tests.uneven_exercise import uneven_triplets

CPU = torch.device("cpu")
STEPS = 3
PERSISTENCE_THRESHOLD = 100_000  # elements up to which DeepSpeed keeps a parameter whole
VOCABULARY = 2048
WHOLE = {"micro_batch_tokens": 4000}  # each worker's share is one micro-batch


def test_workers_with_more_chunks_of_labels_than_others_train_under_zero_3(tmp_path, monkeypatch):
    """ZeRO-3 gathers the output embedding for each chunk, and a worker that asks for it more often
    waits for the others in an operation that they are not in."""
    assert VOCABULARY * HIDDEN > PERSISTENCE_THRESHOLD
    base = write_base(tmp_path / "base", vocabulary=VOCABULARY)
    loss = {"lambda_anchor": 0.3}  # asks for the embedding once more a chunk
    plain = exercise_config(base, loss=loss, train=WHOLE)
    sharded = exercise_config(
        base, loss=loss, train=WHOLE, engine="deepspeed", deepspeed={"zero_stage": 3}
    )
    monkeypatch.setattr(exercise_module, "_triplets", uneven_triplets)
    expected = run_exercise(
        Exercise("plain", plain, last=STEPS, double=True), tmp_path, CPU, rank=0, workers=1
    )
    (found,) = run_exercises(
        [Exercise("zero-3", sharded, last=STEPS, double=True)],
        tmp_path,
        workers=2,
        timeout=120,
        module="tests.uneven_exercise",
    )
    assert found.error is None
    assert found.losses == pytest.approx(expected.losses, rel=1e-6)  # its gradients are float32
    paths = (tmp_path / f"{name}.safetensors" for name in ("zero-3", "plain"))
    assert difference(*paths) < 1e-5  # see `test_engines.py`


def test_the_uneven_triplets_are_uneven():
    config = exercise_config("base")
    chunks = [
        len(micro.batch.labels)
        for share in (uneven_triplets()[:1], uneven_triplets()[1:3])
        for micro in cut_micro_batches(share, needs_of(config.loss), 4000, FLAT)
    ]
    assert chunks == [1, 2]


def test_ddp_begins_with_what_rank_0_trains_and_leaves_the_base_where_it_is(tmp_path):
    base = write_base(tmp_path / "base")
    expected = run_exercise(
        Exercise("plain", exercise_config(base), last=STEPS, double=True), tmp_path, CPU, 0, 1
    )
    (found,) = run_exercises(
        [Exercise("ddp", exercise_config(base, engine="ddp"), last=STEPS, double=True)],
        tmp_path,
        workers=2,
        module="tests.unlike_exercise",
    )
    assert found.error is None
    assert found.losses == pytest.approx(expected.losses, rel=1e-10)
    paths = (tmp_path / f"{name}.safetensors" for name in ("ddp", "plain"))
    assert difference(*paths) < 1e-10
    assert float((tmp_path / "base.txt").read_text()) == pytest.approx(1.0)  # nobody sent another
