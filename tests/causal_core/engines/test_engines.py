"""Every engine computes the same, saves the same, and skips together. Real processes, gloo.

1. Parity: 6 optimizer steps on the same global batches, differently cut, clipping in each: DDP and
   ZeRO 1, 2, 3 on two workers end where one plain worker does (see `tolerance`).
2. A checkpoint of any engine continues under any other as if nothing had happened, and under
   the same one bit-identically.
3. When one worker alone sees a loss that is not finite, all skip the step and go on together.
4. No checkpoint gets a manifest while a tensor is missing, empty or partial.
5. Workers that differ in what they begin with, or in how much they have, end where one does.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.engines import (
    EIGHT_BIT,
    EIGHT_BIT_PLAIN,
    ENGINES,
    EVERY_TERM,
    EVERY_TERM_PLAIN,
    HALF,
    NF4,
    NF4_PLAIN,
    PLAIN,
    STEPS,
    VARIANTS,
    difference,
    parity,
    resume_matrix,
)
from causal_core.checkpoints.checkpoint import save_checkpoint
from causal_core.checkpoints.contents import MANIFEST
from causal_core.config import TrainSection
from causal_core.engines.base import EngineState
from causal_core.engines.plain import PlainEngine
from causal_core.errors import CheckpointError, StorageError
from causal_core.loss.objective import needs_of
from causal_core.run import exercise as exercise_module
from causal_core.run.exercise import (
    CLIP_NORM,
    HIDDEN,
    Exercise,
    exercise_config,
    run_exercise,
    run_exercises,
    trainer_state,
    worker_result,
    write_base,
)
from causal_core.trees.packing import FLAT, cut_micro_batches
from tests.poisoned_exercise import INFINITE_STEP, NAN_STEP
from tests.tiny import tiny_model
from tests.uneven_exercise import uneven_triplets

pytestmark = pytest.mark.long

FLOAT32_LIMIT = 1e-5  # beyond what rounding does, below what errors do: see `test_rounding.py`
DDP, ZERO_1, ZERO_2, ZERO_3 = ENGINES[1:]
TWO_WORKERS = (DDP, ZERO_1, ZERO_2, ZERO_3)
# The engines whose forward is another one; all of them are a slow test.
WITH_EVERY_TERM = tuple(case for case in EVERY_TERM if case.stage in (None, 3))
CPU = torch.device("cpu")
PERSISTENCE_THRESHOLD = 100_000  # elements up to which DeepSpeed keeps a parameter whole
LARGE_VOCABULARY = 2048
# (saved under, resumed under); the whole matrix is a slow test.
RESUMED = (
    (PLAIN, ZERO_2), (ZERO_2, PLAIN), (DDP, ZERO_3), (ZERO_3, DDP), (ZERO_3, PLAIN),
    (ZERO_1, ZERO_1), (ZERO_2, ZERO_2), (ZERO_3, ZERO_3),
)  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def unlike(base):
    """A worker begins with other weights."""
    return Exercise("unlike", exercise_config(base, engine="ddp"), last=HALF, double=True)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """A worker has more chunks of labels than the other. ZeRO-3 gathers the output embedding for
    each chunk, and a worker that asks for it more often would wait for the others in an operation
    that they are not in."""
    assert LARGE_VOCABULARY * HIDDEN > PERSISTENCE_THRESHOLD
    config = exercise_config(
        write_base(tmp_path_factory.mktemp("large"), vocabulary=LARGE_VOCABULARY),
        loss={"lambda_anchor": 0.3},  # asks for the embedding once more a chunk
        train={"micro_batch_tokens": 4000},  # each worker's share is one micro-batch
        engine="deepspeed", deepspeed={"zero_stage": 3},
    )  # fmt: skip
    return Exercise("uneven", config, last=HALF, double=True)


@pytest.fixture(scope="module")
def runs(base, unlike, uneven, tmp_path_factory):
    """Straight, resumed and poisoned runs of all engines, and those of workers that differ:
    results by name, directory.

    One plain worker runs in this process; two workers are processes, the same for all cases.
    """
    directory = tmp_path_factory.mktemp("runs")

    def straight(case):
        return case.exercise(base, case.name, last=STEPS)

    def saved(case):
        return replace(straight(case), save=_checkpoint(directory, case), saved_at=HALF)

    def poisoned(case):
        return case.exercise(base, f"poisoned-{case.name}", last=STEPS)

    def resumed(workers):
        return [
            b.exercise(base, _name(a, b), first=HALF, resume=_checkpoint(directory, a))
            for a, b in RESUMED
            if b.workers == workers
        ]

    def here(exercises):
        return [run_exercise(t, directory, CPU, 0, 1) for t in exercises]

    results = here([saved(PLAIN), straight(EVERY_TERM_PLAIN)])
    results += run_exercises(
        [
            *map(saved, TWO_WORKERS),
            *map(straight, WITH_EVERY_TERM),
            *resumed(2),
            *map(poisoned, TWO_WORKERS),
            unlike,
            uneven,  # last: where its workers wait for each other for ever, no other case does
        ],
        directory,
        workers=2,
        module="tests.odd_exercises",
    )
    results += here(resumed(1))
    return {result.name: result for result in results}, directory


def tolerance(*cases):
    """How far weights may be apart, relative to their norm.

    Exercises compute in float64, so that no processor's float32 rounding enters. ZeRO sums
    gradients and moves weights in float32 all the same, and NF4 and 8-bit optimizers know nothing
    else. `test_rounding.py` shows what that may do.
    """
    exact = all(case.double and not case.stage for case in cases)
    return 1e-10 if exact else FLOAT32_LIMIT


def _checkpoint(directory, case):
    return str(directory / f"checkpoint-{case.name}")


def _name(saved_under, resumed_under):
    return f"{saved_under.name} to {resumed_under.name}"


@pytest.mark.parametrize("case", (*TWO_WORKERS, *WITH_EVERY_TERM), ids=lambda c: c.name)
def test_every_engine_ends_where_one_plain_worker_does(runs, case):
    results, directory = runs
    plain = EVERY_TERM_PLAIN if case in EVERY_TERM else PLAIN
    found, expected = results[case.name], results[plain.name]
    assert found.error is None
    assert found.losses == pytest.approx(expected.losses, rel=tolerance(case))
    assert found.grad_norms == pytest.approx(expected.grad_norms, rel=tolerance(case))
    assert min(expected.grad_norms) > CLIP_NORM  # clipping was active in every step
    weights = directory / f"{case.name}.safetensors", directory / f"{plain.name}.safetensors"
    assert difference(*weights) < tolerance(case)


@pytest.mark.parametrize("pair", RESUMED, ids=lambda pair: _name(*pair))
def test_a_checkpoint_continues_under_another_engine(runs, pair):
    results, directory = runs
    saved_under, resumed_under = pair
    name = _name(saved_under, resumed_under)
    assert results[name].error is None
    resumed = directory / f"{name}.safetensors"
    assert difference(resumed, directory / f"{PLAIN.name}.safetensors") < tolerance(*pair)
    if saved_under is resumed_under:
        own = load_file(directory / f"{resumed_under.name}.safetensors")
        assert all(torch.equal(own[k], v) for k, v in load_file(resumed).items())


def test_checkpoints_of_all_engines_have_the_same_files_and_tensors(runs):
    _, directory = runs
    expected = directory / f"checkpoint-{PLAIN.name}"
    for case in TWO_WORKERS:
        found = directory / f"checkpoint-{case.name}"
        assert {p.name for p in found.iterdir()} == {p.name for p in expected.iterdir()}
        for path in expected.glob("*.safetensors"):
            shapes = [
                {k: (v.shape, v.dtype) for k, v in load_file(d / path.name).items()}
                for d in (found, expected)
            ]
            assert shapes[0] == shapes[1], path.name


@pytest.mark.parametrize("case", TWO_WORKERS, ids=lambda c: c.name)
def test_all_workers_skip_what_one_of_them_finds_not_finite(runs, case):
    results, directory = runs
    name = f"poisoned-{case.name}"
    result, other = results[name], worker_result(directory, name, 1)
    assert result.error is None
    skipped = [step for step, applied in enumerate(result.applied) if not applied]
    assert skipped == [NAN_STEP, INFINITE_STEP]
    assert other.applied == result.applied
    assert not math.isfinite(result.grad_norms[NAN_STEP])
    assert math.isfinite(result.grad_norms[INFINITE_STEP])
    assert math.isinf(result.losses[INFINITE_STEP])
    assert result.losses == pytest.approx(other.losses, rel=0, abs=0, nan_ok=True)
    # A skipped step leaves no trace: all engines go on from the same parameters and moments.
    weights = directory / f"{name}.safetensors"
    assert difference(weights, directory / f"poisoned-{DDP.name}.safetensors") < tolerance(case)


def alone(exercise, directory):
    """The same exercise by one plain worker, as its result and the file of its weights."""
    config = exercise.config.model_copy(update={"engine": "plain"})
    plain = replace(exercise, name=f"{exercise.name}, plain", config=config)
    return run_exercise(plain, directory, CPU, 0, 1), directory / f"{plain.name}.safetensors"


def test_ddp_begins_with_what_rank_0_trains_and_leaves_the_base_where_it_is(runs, unlike):
    results, directory = runs
    expected, weights = alone(unlike, directory)
    assert results["unlike"].error is None
    assert results["unlike"].losses == pytest.approx(expected.losses, rel=1e-10)
    assert difference(directory / "unlike.safetensors", weights) < 1e-10
    moved = float((directory / "base.txt").read_text())
    assert moved == pytest.approx(1.0)  # nobody sent another


def test_workers_with_more_chunks_of_labels_than_others_train_under_zero_3(
    runs, uneven, monkeypatch
):
    results, directory = runs
    monkeypatch.setattr(exercise_module, "_triplets", uneven_triplets)
    expected, weights = alone(uneven, directory)
    assert results["uneven"].error is None
    assert results["uneven"].losses == pytest.approx(expected.losses, rel=1e-6)  # float32 gradients
    assert difference(directory / "uneven.safetensors", weights) < FLOAT32_LIMIT


def test_the_uneven_triplets_are_uneven(uneven):
    needs = needs_of(uneven.config.loss)
    chunks = [
        len(micro.batch.labels)
        for share in (uneven_triplets()[:1], uneven_triplets()[1:3])
        for micro in cut_micro_batches(share, needs, 4000, FLAT)
    ]
    assert chunks == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reference", "cases"),
    [
        (PLAIN, VARIANTS),
        (EVERY_TERM_PLAIN, EVERY_TERM),
        (NF4_PLAIN, NF4),
        (EIGHT_BIT_PLAIN, EIGHT_BIT),
    ],
    ids=["variants", "every term", "nf4", "8bit"],
)
def test_parity_of_every_supported_setting(base, tmp_path, reference, cases):
    found = parity(reference, cases, base, tmp_path)
    for case in (reference, *cases):
        value = found[case.name]
        assert not isinstance(value, str), f"{case.name}: {value}"
        assert value < tolerance(case), case.name


@pytest.mark.parametrize("trim", [0.0, 0.01])
def test_a_number_that_is_none_is_a_difference(tmp_path, trim):
    for name, value in (("nan", math.nan), ("one", 1.0)):
        tensors = {"a": torch.ones(3), "b": torch.tensor([1.0, value, 1.0]), "c": torch.ones(3)}
        save_file(tensors, tmp_path / name)
    for pair in (("nan", "one"), ("one", "nan")):
        assert math.isnan(difference(*(tmp_path / name for name in pair), trim))


@pytest.mark.slow
def test_any_engine_continues_any_other(base, tmp_path):
    by_name = {case.name: case for case in ENGINES}
    for (saved_under, compared), value in resume_matrix(ENGINES, base, tmp_path).items():
        assert not isinstance(value, str), f"{saved_under} to {compared}: {value}"
        own = compared.endswith("own run")
        limit = tolerance(by_name[saved_under], by_name.get(compared, PLAIN))
        assert value == 0 if own else value < limit, f"{saved_under} to {compared}"


class _NoTokenizer:
    def save_pretrained(self, directory):
        pass


def _truncated(state, name):
    return EngineState({**state.weights, name: state.weights[name][:1].clone()})


def _emptied(state, name):
    return EngineState({**state.weights, name: state.weights[name][:0].clone()})


def _without(state, name):
    return EngineState({k: v for k, v in state.weights.items() if k != name})


def _with_partial_moment(state, name):
    return EngineState(state.weights, {f"{name}//exp_avg": state.weights[name][:1].clone()})


def _with_foreign_moment(state, name):
    return EngineState(state.weights, {"base.weight//exp_avg": state.weights[name].clone()})


@pytest.mark.parametrize(
    "damage", [_truncated, _emptied, _without, _with_partial_moment, _with_foreign_moment]
)
@pytest.mark.parametrize("part", ["lora_A", "projection.norm"])
def test_what_is_not_whole_gets_no_manifest(tmp_path, damage, part):
    model = tiny_model()
    engine = PlainEngine(model, TrainSection(), torch.device("cpu"))
    state = engine.state()
    name = next(n for n in state.weights if part in n)
    config = exercise_config(tmp_path)
    saved = trainer_state(config, 1)
    with pytest.raises(StorageError, match="would not be whole"):
        save_checkpoint(
            tmp_path / "c", engine, damage(state, name), config, _NoTokenizer(), saved, {}
        )
    assert not (tmp_path / "c" / MANIFEST).exists()
    save_checkpoint(tmp_path / "whole", engine, state, config, _NoTokenizer(), saved, {})
    assert (tmp_path / "whole" / MANIFEST).exists()


def test_a_state_that_does_not_belong_changes_nothing():
    model = tiny_model()
    engine = PlainEngine(model, TrainSection(), torch.device("cpu"))
    before = {name: weight.clone() for name, weight in engine.weights().items()}
    moved = {name: weight + 1 for name, weight in before.items()}
    with pytest.raises(CheckpointError, match="no trainable parameter"):
        engine.load(EngineState(moved, {"other//exp_avg": torch.ones(1)}))
    assert all(torch.equal(before[name], weight) for name, weight in engine.weights().items())
