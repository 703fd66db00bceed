"""Real Ray Train runs over the tiny model: one worker, two workers (gloo), a resume, a refusal.

Each start of workers takes seconds, so that one run shows as much as it can.

1. Ray changes nothing: one Ray worker continues a run of this process and ends bit-identical to it;
   with another config the run is refused as the user's error (slow).
2. Two workers continue a run of this process and end where one does (I2), up to float rounding.
3. What a user can act on is told from what broke in an evaluation's workers; neither shows a trace.
"""

from __future__ import annotations

import pytest

from benchmarks.engines import TRIM, difference
from causal_core.checkpoints.contents import verify_checkpoint
from causal_core.checkpoints.store import CheckpointStore
from causal_core.errors import DamagedCheckpointError, RunFailedError, UserError
from causal_core.evaluation.subject import Subject
from ray_jobs.evaluate import _on_ray
from ray_jobs.training.trainer import fit
from tests.tiny_run import metric_lines, tiny_config

pytestmark = pytest.mark.ray

# Float32 and AdamW, so without the elements that rounding alone may turn around (as in
# tests/causal_core/engines/test_rounding.py); of the rest it made 1.2e-5 on one AMD EPYC. A wrong
# gradient is no matter of rounding: there it makes more than 1e-1 of an adapter.
LIMIT = 1e-4


@pytest.fixture
def config_of(tiny_model_directory, tiny_data, tmp_path):
    def make(name, workers, **sections):
        return tiny_config(
            tiny_model_directory, tiny_data, tmp_path / name,
            resources={"workers": workers, "threads": 1}, **sections,
        )  # fmt: skip

    return make


def final_checkpoint(config):
    from causal_core.config import run_directory

    store = CheckpointStore(str(run_directory(config) / "checkpoints"))
    with store.newest_whole() as newest:  # a local one stays where it is
        return newest


def sha256_of_files(config):
    # The stored config names the number of workers, which differs on purpose.
    files = verify_checkpoint(final_checkpoint(config)).files
    return {name: f.sha256 for name, f in files.items() if name != "config.yaml"}


def metric_lines_of(config):
    from causal_core.config import run_directory

    return metric_lines(run_directory(config))


@pytest.mark.slow
def test_one_ray_worker_continues_this_process_and_ends_bit_identical(local_ray, config_of):
    """Saved here, read there; and what Ray saved is what refuses another config.

    Faster: the next test of going on, `test_process.py` of what is refused, and `test_loop.py` of
    bits.
    """
    here, on_ray = config_of("here", 0), config_of("ray", 0)
    assert fit(here)["steps"] == 5
    assert fit(on_ray, stop_at=2)["steps"] == 2
    on_ray.resources.workers = 1
    assert fit(on_ray)["steps"] == 5
    assert sha256_of_files(here) == sha256_of_files(on_ray)
    before = metric_lines_of(on_ray)
    # The stop validated once more than the straight run did.
    assert [r for r in before if r["kind"] == "train"] == [
        r for r in metric_lines_of(here) if r["kind"] == "train"
    ]
    on_ray.lora.rank = 3
    with pytest.raises(UserError, match=r"lora\.rank: 2 -> 3"):
        fit(on_ray)
    assert metric_lines_of(on_ray) == before


def test_two_workers_end_where_one_does(local_ray, config_of):
    exact = {"lora": {"dropout": 0.0}}
    loss = {"loss": {"lambda_causal": 0.5, "lambda_spurious": 0.5}}
    one, two = config_of("one", 0, **exact, **loss), config_of("two", 2, **exact, **loss)
    fit(one)
    two.resources.workers = 0
    assert fit(two, stop_at=2)["steps"] == 2  # where both validate
    two.resources.workers = 2
    summary = fit(two)
    assert summary["workers"] == 2 and summary["steps_now"] == 3
    for record, other in zip(metric_lines_of(one), metric_lines_of(two), strict=True):
        assert record.keys() == other.keys()
        for key, value in record.items():
            if isinstance(value, float):
                assert other[key] == pytest.approx(value, rel=1e-3, abs=1e-5), key
    first = next(r for r in metric_lines_of(one) if r["kind"] == "train")
    second = next(r for r in metric_lines_of(two) if r["kind"] == "train")
    assert second["loss"] == pytest.approx(first["loss"], rel=1e-6)
    assert second["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-5)
    for name in ("adapter_model.safetensors", "causal_projection.safetensors"):
        assert difference(final_checkpoint(two) / name, final_checkpoint(one) / name, TRIM) < LIMIT


def test_an_error_in_an_evaluations_worker_is_one_sentence(local_ray, config_of, tmp_path, capfd):
    config = config_of("run", 1)
    subject = Subject("trained", config, checkpoint=tmp_path / "gone")
    job = {
        "config": config.model_dump(mode="json"), "directory": config.run.dir, "shard": 0,
        "subjects": [subject.to_plain()],
    }  # fmt: skip
    with pytest.raises(DamagedCheckpointError) as refused:
        _on_ray(config, [job])
    assert str(tmp_path / "gone") in str(refused.value) and "\n" not in str(refused.value)
    with pytest.raises(RunFailedError) as failed:
        _on_ray(config, [{**job, "subjects": None}])
    account = tmp_path / "run" / "log" / "failure.log"
    assert str(failed.value).startswith("the evaluation failed: TypeError: 'NoneType' object")
    assert str(failed.value).endswith(f"Ray's full error is in {account}")
    assert "in evaluation_worker" in account.read_text()
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.slow
def test_the_same_command_continues_from_what_ray_saved(local_ray, config_of):
    straight, resumed = config_of("straight", 1), config_of("resumed", 1)
    assert fit(straight)["steps"] == 5
    before = metric_lines_of(straight)
    assert fit(straight)["steps"] == 5  # finished already
    assert metric_lines_of(straight) == before
    assert fit(resumed, stop_at=3)["steps"] == 3
    assert fit(resumed)["steps"] == 5
    assert sha256_of_files(straight) == sha256_of_files(resumed)


@pytest.mark.slow
def test_paths_relative_to_the_drivers_directory_work_on_workers(
    local_ray, config_of, tiny_data, monkeypatch, tmp_path
):
    from rich.console import Console

    from ray_jobs.run import run_training

    monkeypatch.chdir(tiny_data)
    config = config_of("run", 1, train={"max_steps": 1})
    config.run.dir = str(tmp_path / "relative")
    config.data.train, config.data.validation = ["train.jsonl"], ["validation.jsonl"]
    config.data.test = {"seen": ["test_seen.jsonl"]}
    result = run_training(config, Console(quiet=True))
    assert result["run"]["steps"] == 1
    assert result["evaluation"]["models"]["trained"]["sets"]["seen"]["n"] == 6


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_a_deepspeed_run_on_ray_is_continued_by_one_plain_worker(local_ray, config_of, stage):
    """Validation with generated answers included: in ZeRO-3 every forward takes both workers."""
    common = {"lora": {"dropout": 0.0}, "checkpoint": {"metric": "attack_success"}}
    plain = config_of("plain", 0, **common)
    sharded = config_of("sharded", 2, **common, deepspeed={"zero_stage": stage})
    sharded.engine = "deepspeed"
    fit(plain)
    half = fit(sharded, stop_at=3)
    assert half["steps"] == 3 and half["workers"] == 2 and not half["finished"]
    sharded.resources.workers = 0
    sharded.engine = "plain"
    assert fit(sharded)["finished"]
    records = list(zip(metric_lines_of(plain), metric_lines_of(sharded), strict=True))
    assert {r["kind"] for r, _ in records} == {"train", "validation"}
    for record, other in records:
        for key in ("step", "loss", "grad_norm", "benign_nll", "uplift", "attack_success"):
            if key in record and record["kind"] == other["kind"]:
                assert other[key] == pytest.approx(record[key], rel=1e-3, abs=1e-5), key
    for name in ("adapter_model.safetensors", "causal_projection.safetensors"):
        ended = final_checkpoint(sharded) / name
        assert difference(ended, final_checkpoint(plain) / name, TRIM) < LIMIT
