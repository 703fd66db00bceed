"""The loop with the directory-based context: whole runs, and invariants I3, I4 and I8.

1. A run leaves what README promises, and computes the planned number of steps.
2. Cut after any step and resumed, a run ends bit-identical to the uninterrupted one: adapter,
   head, optimizer state and metrics.jsonl (dropout is on).
3. After a resume the optimizer holds the very parameters of the model, and all of them train.
4. A damaged newest checkpoint is skipped; another config, data or base is refused with a reason.
5. Non-finite steps are skipped, counted, and stop the run when there are too many in a row.
"""

from __future__ import annotations

import json
import shutil
import types

import pytest
import torch

from causal_core.checkpoints.contents import FORMAT_VERSION, verify_checkpoint
from causal_core.checkpoints.store import CheckpointStore
from causal_core.errors import (
    CheckpointError,
    ForeignCheckpointError,
    NewerFormatError,
    RunFailedError,
    StorageError,
    UserError,
)
from causal_core.loss.objective import reference_hidden
from causal_core.run import loop, saving
from causal_core.run.context import LocalContext
from causal_core.step import reference
from tests.tiny_run import metric_lines, tiny_config

pytestmark = pytest.mark.long

CPU = torch.device("cpu")


class Cut(Exception):
    """Stands for a crash."""


class CuttingContext(LocalContext):
    """Crashes after a number of reported checkpoints."""

    survive = 0

    def report(self, metrics, checkpoint, name):
        super().report(metrics, checkpoint, name)
        self.survive -= 1
        if self.survive == 0:
            raise Cut


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """What every config says where its run is, since checkpoints hold the config; where a run
    writes is said by its context."""
    return tmp_path_factory.mktemp("whole")


def short(model, data, directory):
    """What is judged on the way is a few tokens of a few rows: here it counts that it is."""
    config = tiny_config(model, data, directory, evaluation={"max_new_tokens": 2})
    config.data.limit_validation = 2
    return config


@pytest.fixture
def config(tiny_model_directory, tiny_data, place):
    return short(tiny_model_directory, tiny_data, place / "run")


@pytest.fixture(scope="module")
def whole_run(tiny_model_directory, tiny_data, place):
    """The summary of the run of `config`, which is computed once."""
    return run(short(tiny_model_directory, tiny_data, place / "run"), place)


@pytest.fixture
def finished(whole_run, place, tmp_path):
    """A copy of that run where a test has its own."""
    return shutil.copytree(place / "run", tmp_path / "run")


def run(config, tmp_path, name="run"):
    context = LocalContext(tmp_path / name, CPU, storage=config.checkpoint.storage)
    return loop.train(config, context)


def final_files(directory):
    with CheckpointStore(str(directory / "checkpoints")).newest_whole() as newest:
        return {name: f.sha256 for name, f in verify_checkpoint(newest).files.items()}


def test_a_run_leaves_what_it_promises(whole_run, finished):
    summary = whole_run
    assert summary["finished"] and summary["steps"] == summary["planned_steps"] == 5
    assert summary["samples"] == 18  # the last partial window included
    lines = metric_lines(finished)
    assert [r["step"] for r in lines if r["kind"] == "train"] == [1, 2, 3, 4, 5]
    assert [r["step"] for r in lines if r["kind"] == "validation"] == [2, 4, 5]
    names = sorted(p.name for p in (finished / "checkpoints").iterdir())
    assert names == ["step-00000002", "step-00000004", "step-00000005"]
    verify_checkpoint(finished / "best")


@pytest.mark.parametrize("survive", [1, 2])
def test_a_cut_run_ends_bit_identical(config, finished, tmp_path, survive):
    context = CuttingContext(tmp_path / "cut", CPU)
    context.survive = survive
    with pytest.raises(Cut):
        loop.train(config, context)
    # What a crash between checkpoints leaves behind: lines beyond the last one, one cut off.
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as log:
        log.write(json.dumps({"kind": "train", "step": 99}) + '\n{"kind": "tr')
    run(config, tmp_path, "cut")
    assert final_files(tmp_path / "cut") == final_files(finished)
    metrics = [(run / "metrics.jsonl").read_bytes() for run in (tmp_path / "cut", finished)]
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize("fresh_attacks", [False, True])
def test_two_cuts_in_a_row_across_an_epoch_boundary(config, tmp_path, fresh_attacks, monkeypatch):
    """With a term that asks for the base: a row's values, once known, are not computed again, and
    a run that has forgotten them computes the same bits."""
    config.train.epochs, config.train.global_batch = 2, 7
    config.data.fresh_attacks = fresh_attacks
    config.loss.lambda_preference = 0.5
    known = []

    def counted(model, batch):
        known.append(batch.nodes)
        return reference_hidden(model, batch)

    monkeypatch.setattr(reference, "reference_hidden", counted)
    run(config, tmp_path, "straight")
    assert len(known) == (0 if fresh_attacks else 18)  # each row once, in two epochs
    for _ in range(2):
        context = CuttingContext(tmp_path / "cut", CPU)
        context.survive = 2
        with pytest.raises(Cut):
            loop.train(config, context)
    run(config, tmp_path, "cut")
    assert final_files(tmp_path / "cut") == final_files(tmp_path / "straight")


@pytest.mark.usefixtures("finished")
def test_after_a_resume_the_optimizer_holds_the_trained_parameters(config, tmp_path, monkeypatch):
    seen = {}
    original = saving.load_checkpoint

    def spy(directory, engine, *rest):
        before = dict(engine.model.trainable_parameters())
        state = original(directory, engine, *rest)
        after = engine.model.trainable_parameters()
        seen.update(before=before, after=after, optimizer=engine.optimizer)
        return state

    monkeypatch.setattr(saving, "load_checkpoint", spy)
    run(config, tmp_path)
    assert seen["before"].keys() == seen["after"].keys()
    assert all(seen["before"][name] is p for name, p in seen["after"].items())
    assert all(p.requires_grad for p in seen["after"].values())
    held = {id(p) for group in seen["optimizer"].param_groups for p in group["params"]}
    assert held == {id(p) for p in seen["after"].values()}
    assert all(len(seen["optimizer"].state[p]) > 0 for p in seen["after"].values())
    projection = [name for name in seen["after"] if name.startswith("projection.")]
    assert len(projection) == 6


@pytest.mark.parametrize(
    "damage",
    ["truncated", "altered", "missing", "no manifest"],
)
def test_a_damaged_newest_checkpoint_is_skipped_with_a_warning(finished, caplog, damage):
    newest = finished / "checkpoints" / "step-00000005"
    victim = newest / "causal_projection.safetensors"
    data = victim.read_bytes()
    if damage == "truncated":
        victim.write_bytes(data[:-10])
    elif damage == "altered":
        victim.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "missing":
        victim.unlink()
    else:
        (newest / "manifest.json").unlink()
    with CheckpointStore(str(finished / "checkpoints")).newest_whole() as whole:
        assert whole is not None and whole.name == "step-00000004"
    reason = "manifest.json" if damage == "no manifest" else victim.name
    assert reason in caplog.text


@pytest.mark.usefixtures("finished")
def test_another_config_is_refused_with_the_difference(config, tmp_path):
    config.train.learning_rate = 0.5
    with pytest.raises(CheckpointError, match=r"train\.learning_rate: 0\.0002 -> 0\.5"):
        run(config, tmp_path)


@pytest.mark.usefixtures("finished")
def test_a_config_that_changes_no_result_is_accepted(config, tmp_path):
    config.train.micro_batch_tokens = 900
    assert run(config, tmp_path)["finished"]


def test_other_data_is_refused(config, tiny_model_directory, tiny_data, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data, ignore=shutil.ignore_patterns("cache"))
    own = short(tiny_model_directory, data, tmp_path / "run")
    own.train.max_steps = 2
    run(own, tmp_path)
    lines = (data / "train.jsonl").read_text().splitlines(keepends=True)
    (data / "train.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(CheckpointError, match="other training data"):
        run(own, tmp_path)


def test_non_finite_steps_are_skipped_and_then_stop_the_run(config, tmp_path, monkeypatch):
    from causal_core.engines.plain import PlainEngine

    config.train.max_skipped = 1
    monkeypatch.setattr(PlainEngine, "clip", lambda self, max_norm: float("nan"))
    with pytest.raises(RunFailedError, match="2 optimizer steps in a row were not finite"):
        run(config, tmp_path)
    assert all(line["skipped"] for line in metric_lines(tmp_path / "run"))


def test_checkpoints_on_another_filesystem_are_uploaded_whole_and_resumed_from(
    config, finished, tmp_path
):
    config.checkpoint.storage = f"file://{tmp_path}/bucket/prefix"
    context = CuttingContext(tmp_path / "remote", CPU, storage=config.checkpoint.storage)
    context.survive = 2
    with pytest.raises(Cut):
        loop.train(config, context)
    assert not (tmp_path / "remote" / "checkpoints").exists()
    stored = tmp_path / "bucket" / "prefix" / "checkpoints"
    (stored / "step-00000004" / "optimizer.safetensors").write_bytes(b"damaged")
    run(config, tmp_path, "remote")  # from step 2: step 4 is damaged
    names = ["adapter_model.safetensors", "causal_projection.safetensors", "optimizer.safetensors"]
    final = verify_checkpoint(stored / "step-00000005").files
    expected = final_files(finished)
    assert {n: final[n].sha256 for n in names} == {n: expected[n] for n in names}


def test_checkpoints_go_to_and_come_from_an_object_store(config, finished, tmp_path, monkeypatch):
    """pyarrow's own mock of a remote filesystem stands for s3:// and gs://."""
    from datetime import datetime

    from pyarrow import fs

    store = fs._MockFileSystem(datetime(2026, 1, 1))

    class Locations:
        from_uri = staticmethod(lambda uri: (store, uri.removeprefix("s3://")))

    patched = types.SimpleNamespace(**{**vars(fs), "FileSystem": Locations})
    monkeypatch.setattr("causal_core.checkpoints.store.fs", patched)
    config.checkpoint.storage = "s3://bucket/runs"
    config.checkpoint.keep_last = 2
    context = LocalContext(
        tmp_path / "remote", CPU, keep_last=2, storage=config.checkpoint.storage, stop_at=4
    )
    assert not loop.train(config, context)["finished"]
    assert run(config, tmp_path, "remote")["finished"]
    with CheckpointStore("s3://bucket/runs/checkpoints").newest_whole() as newest:
        found = {n: f.sha256 for n, f in verify_checkpoint(newest).files.items()}
    expected = final_files(finished)
    weights = [name for name in expected if name.endswith(".safetensors")]
    assert len(weights) == 3
    assert {n: found[n] for n in weights} == {n: expected[n] for n in weights}
    assert not (tmp_path / "remote" / "checkpoints").exists()


def test_a_request_to_stop_ends_at_a_step_boundary_with_a_checkpoint(config, finished, tmp_path):
    context = LocalContext(tmp_path / "stopped", CPU, stop_at=3)  # no multiple of every_steps
    summary = loop.train(config, context)
    assert summary["steps"] == 3 and not summary["finished"]
    assert run(config, tmp_path, "stopped")["finished"]
    first, second = final_files(finished), final_files(tmp_path / "stopped")
    state = "trainer_state.json"  # the extra checkpoint took part in the selection of the best
    assert {k: v for k, v in first.items() if k != state} == {
        k: v for k, v in second.items() if k != state
    }


def test_a_checkpoint_need_not_be_judged(config, finished, tmp_path):
    """Training is the same; what is saved in between is there for a resume alone."""
    config.validation.at_checkpoints = False
    summary = run(config, tmp_path, "unjudged")
    lines = metric_lines(tmp_path / "unjudged")
    assert [r["step"] for r in lines if r["kind"] == "validation"] == [5]
    assert summary["best_step"] == 5
    names = {path.name for path in (tmp_path / "unjudged" / "checkpoints").iterdir()}
    assert names == {path.name for path in (finished / "checkpoints").iterdir()}
    train = [r for r in lines if r["kind"] == "train"]
    assert train == [r for r in metric_lines(finished) if r["kind"] == "train"]


def test_early_stopping_ends_the_run_and_stays_ended(config, tmp_path):
    config.checkpoint.metric = "uplift"
    config.checkpoint.patience = 1
    config.checkpoint.min_improvement = 1e6
    config.train.epochs = 4
    summary = run(config, tmp_path)
    assert summary["finished"] and summary["stopped_early"] and summary["steps"] == 4
    assert run(config, tmp_path)["steps"] == 4


def test_no_temporary_checkpoint_is_left_behind(config, tmp_path, monkeypatch):
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    run(config, tmp_path)
    assert not list((tmp_path / "tmp").iterdir())


def test_a_full_storage_ends_the_run_and_leaves_the_last_good_checkpoint(
    config, tmp_path, monkeypatch
):
    import errno

    original = CheckpointStore.put

    def put(self, directory, name):
        if name == "step-00000004":
            raise OSError(errno.ENOSPC, "No space left on device")
        original(self, directory, name)

    monkeypatch.setattr(CheckpointStore, "put", put)
    with pytest.raises(StorageError, match=r"step 4 could not be written.*No space left"):
        run(config, tmp_path)
    monkeypatch.undo()
    with CheckpointStore(str(tmp_path / "run" / "checkpoints")).newest_whole() as newest:
        assert newest.name == "step-00000002"
    assert run(config, tmp_path)["finished"]


@pytest.mark.parametrize("key", ["base_fingerprint", "format_version"])
def test_a_foreign_base_and_a_newer_format_are_refused(config, finished, tmp_path, key):
    for directory in (finished / "checkpoints").iterdir():
        manifest = json.loads((directory / "manifest.json").read_text())
        manifest[key] = FORMAT_VERSION + 1 if key == "format_version" else "another"
        (directory / "manifest.json").write_text(json.dumps(manifest))
    if key == "format_version":
        with pytest.raises(NewerFormatError, match=f"format version {FORMAT_VERSION + 1}"):
            run(config, tmp_path)
    else:
        with pytest.raises(ForeignCheckpointError, match="other base model"):
            run(config, tmp_path)


@pytest.mark.slow
def test_peak_memory_is_flat_over_ten_epochs(config, tmp_path):
    """Bug 7 of the reports: memory crept up from epoch to epoch."""
    config.train.epochs = 10
    run(config, tmp_path)
    lines = (tmp_path / "run" / "performance.jsonl").read_text().splitlines()
    peaks = [json.loads(x).get("peak_memory_bytes") for x in lines]
    peaks = [p for p in peaks if p]
    assert len(peaks) == 50
    assert peaks[-1] - peaks[9] < 16 * 2**20, "from the second epoch's end to the tenth's"


def test_the_best_by_attack_success_is_judged_from_answers(config, tmp_path):
    config.checkpoint.metric = "attack_success"
    config.train.max_steps = 2
    run(config, tmp_path)
    (validation,) = [r for r in metric_lines(tmp_path / "run") if r["kind"] == "validation"]
    assert validation["attack_success"] == 0.0  # random weights produce no witness


def test_without_a_witness_the_best_is_chosen_by_the_benign_answer(
    tiny_model_directory, tiny_data, tmp_path, caplog
):
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data, ignore=shutil.ignore_patterns("cache"))
    rows = [json.loads(line) for line in (data / "validation.jsonl").read_text().splitlines()]
    (data / "validation.jsonl").write_text(
        "".join(
            json.dumps({**row, "injections": [{**row["injections"][0], "witness": None}]}) + "\n"
            for row in rows
        )
    )
    config = tiny_config(tiny_model_directory, data, tmp_path / "run", train={"max_steps": 2})
    assert run(config, tmp_path)["best_step"] == 2
    assert "the lowest benign_nll is chosen instead" in caplog.text
    verify_checkpoint(tmp_path / "run" / "best")


def test_a_triplet_that_fits_no_micro_batch_is_named_before_the_first_step(config, tmp_path):
    config.train.micro_batch_tokens = 64
    with pytest.raises(UserError, match=r"triplet '.*' needs \d+ tree nodes.*raise it to at least"):
        run(config, tmp_path)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
