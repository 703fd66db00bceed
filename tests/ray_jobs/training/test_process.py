"""A run's only worker as a process of its own: what Ray gives is there without Ray.

1. It is killed in the middle of a run, started again, and goes on, with real training (slow) to
   the same bits as a run of this process that nothing happened to; one process does several jobs.
2. What a user can act on comes back as it was raised; anything else is told in a line and its
   traceback kept, after as many failures as are allowed.
3. It ends with its driver.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import psutil
import pytest

from causal_core.checkpoints.contents import verify_checkpoint
from causal_core.config import Config
from causal_core.errors import RunFailedError, UserError
from ray_jobs.evaluate import evaluated_rows
from ray_jobs.training.process import WorkerFailedError, runs_alone, worker_process
from ray_jobs.training.trainer import fit
from tests.ray_jobs.training import light_worker
from tests.run_process import last_step, train_lines, wait_until
from tests.tiny_run import tiny_config

pytestmark = pytest.mark.long


@pytest.fixture(autouse=True)
def without_ray(monkeypatch):
    """Another test of this process may be connected to Ray."""
    monkeypatch.setattr("ray_jobs.training.process._connected_to_ray", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture
def config_of(tiny_model_directory, tiny_data, tmp_path):
    def make(name, workers=1, **sections):
        resources = {"workers": workers, "threads": 1}
        return tiny_config(
            tiny_model_directory, tiny_data, tmp_path / name, resources=resources, **sections
        )

    return make


def state_of(run):
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    files = verify_checkpoint(newest).files
    return {name: f.sha256 for name, f in files.items() if name != "config.yaml"}


def killed_at(step, run, process):
    """Kills the worker as soon as it has logged a step; its number."""
    pid = process.pid

    def kill():
        wait_until(lambda: last_step(run) >= step, "a step")
        os.kill(pid, signal.SIGKILL)

    threading.Thread(target=kill).start()
    return pid


def test_a_killed_worker_is_started_again_and_does_the_job_and_further_ones(
    config_of, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr("ray_jobs.training.process.MODULE", light_worker.__name__)
    config = config_of("run")
    with worker_process(config) as process:
        first = killed_at(light_worker.STOP, tmp_path / "run", process)
        assert fit(config)["steps_now"] == light_worker.STEPS - light_worker.STOP
        second = process.pid
        assert second != first
        pids = [record["pid"] for record in train_lines(tmp_path / "run")]
        assert pids == [first] * light_worker.STOP + [second] * 2
        options = {"max_failures": 0, "retry_errors": True, "look": lambda: None}
        assert process.run("evaluate", {}, **options) == second
    assert "killed by SIGKILL" in caplog.text and "failure 1" in caplog.text
    assert not psutil.pid_exists(second)


@pytest.mark.slow
def test_a_killed_worker_goes_on_and_ends_bit_identical(config_of, tmp_path):
    """Faster: the test above, and of a cut run `test_loop.py`."""
    longer = {"train": {"epochs": 4}, "checkpoint": {"every_steps": 3}}
    straight, killed = config_of("straight", 0, **longer), config_of("killed", **longer)
    assert fit(straight)["finished"]
    with worker_process(killed) as process:
        first = killed_at(4, tmp_path / "killed", process)
        summary = fit(killed)
        assert summary["finished"] and process.pid != first
        assert 3 <= summary["steps"] - summary["steps_now"] < summary["steps"]  # it went on
        second = process.pid
        rows = evaluated_rows(killed, {"base": None}).rows
        assert process.pid == second and len(rows["base"]["seen"]) == 6
    assert not psutil.pid_exists(second)
    assert state_of(tmp_path / "killed") == state_of(tmp_path / "straight")
    assert train_lines(tmp_path / "killed") == train_lines(tmp_path / "straight")


def test_errors_come_back_as_what_they_are(config_of, tmp_path):
    quick = {"limit": 2, "max_new_tokens": 1}
    config = config_of("run", train={"max_steps": 2}, ray={"max_failures": 0}, evaluation=quick)
    with worker_process(config) as process:
        assert fit(config, stop_at=1)["steps"] == 1
        pid = process.pid
        assert len(evaluated_rows(config, {"base": None}).rows["base"]["seen"]) == 2
        assert process.pid == pid
        config.lora.rank = 3
        with pytest.raises(UserError, match=r"lora\.rank: 2 -> 3"):
            fit(config)
        with pytest.raises(UserError, match="gone"):
            evaluated_rows(config_of("run"), {"gone": tmp_path / "gone"})
        options = {"max_failures": 0, "retry_errors": True, "look": lambda: None}
        with pytest.raises(WorkerFailedError, match=r"^KeyError: 'config'$") as failed:
            process.run("train", {}, **options)
        assert "Traceback" in failed.value.account and "train_alone" in failed.value.account
        os.kill(process.pid, signal.SIGKILL)
        config.lora.rank = 2
        with pytest.raises(RunFailedError, match=r"killed by SIGKILL.*full error is in") as killed:
            fit(config)
        assert "\n" not in str(killed.value)


_DRIVER = """
import sys
from causal_core.config import Config
from ray_jobs.training.process import worker_process
with worker_process(Config.model_validate({"resources": {"workers": 1}})) as process:
    print(process.pid, flush=True)
    sys.stdin.read()
"""


def test_the_worker_of_a_driver_that_dies_ends(monkeypatch):
    driver = subprocess.Popen(
        [sys.executable, "-c", _DRIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    worker = psutil.Process(int(driver.stdout.readline()))
    assert worker.is_running()
    driver.kill()
    driver.communicate()
    wait_until(
        lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE,
        "end of the worker",
    )


@pytest.mark.parametrize(
    ("sections", "alone"),
    [
        ({"resources": {"workers": 1}}, True),
        ({"resources": {"workers": 1, "gpus_per_worker": 1}}, True),
        ({"resources": {"workers": 0}}, False),
        ({"resources": {"workers": 2}}, False),
        ({"resources": {"workers": (1, 1)}}, False),  # elastic
        ({"resources": {"workers": 1}, "engine": "deepspeed"}, False),
        ({"resources": {"workers": 1}, "ray": {"address": "10.0.0.1:6379"}}, False),
    ],
)
def test_all_but_one_worker_of_this_machine_go_through_ray(sections, alone):
    assert runs_alone(Config.model_validate(sections)) is alone


def test_a_job_of_a_cluster_and_a_program_that_uses_ray_go_through_ray(monkeypatch):
    config = Config.model_validate({"resources": {"workers": 1}})
    with monkeypatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
        assert not runs_alone(config)
    monkeypatch.setattr("ray_jobs.training.process._connected_to_ray", lambda: True)
    assert not runs_alone(config)
    with worker_process(config) as process:
        assert process is None
