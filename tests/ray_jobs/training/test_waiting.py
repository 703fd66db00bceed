"""Resources that cannot come, or do not come, end a run with a reason; Ray alone waits for ever."""

from __future__ import annotations

import threading
import time

import pytest

from causal_core.errors import RunFailedError, UserError
from ray_jobs.training.context import STOP_FILE
from ray_jobs.training.ray_session import ray_session, refused_here
from ray_jobs.training.trainer import fit
from ray_jobs.training.waiting import WAITING_FILE, Wait, workers_are_up
from tests.tiny_run import tiny_config


@pytest.fixture
def config_of(tiny_model_directory, tiny_data, tmp_path):
    def make(**sections):
        sections.setdefault("resources", {"workers": 1, "threads": 1})
        return tiny_config(tiny_model_directory, tiny_data, tmp_path / "run", **sections)

    return make


@pytest.fixture
def no_cpu_free(local_ray):
    """Somebody else holds all of the cluster's CPUs."""
    import ray

    @ray.remote
    class Other:
        def here(self):
            return True

    other = Other.options(num_cpus=ray.cluster_resources()["CPU"]).remote()
    assert ray.get(other.here.remote())
    yield
    ray.kill(other)


def test_gpus_that_are_not_here_are_refused_before_ray_starts(config_of, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    one, two = (
        config_of(resources={"workers": workers, "gpus_per_worker": 1.0}) for workers in (1, 2)
    )
    assert refused_here(one) is None
    assert "asks for 2" in refused_here(two) and "sees 1" in refused_here(two)
    assert refused_here(config_of()) is None
    two.ray.address = "auto"  # the cluster's matter
    assert refused_here(two) is None


def test_workers_for_which_memory_is_not_enough_are_refused_before_ray_starts(
    config_of, monkeypatch
):
    monkeypatch.setattr("causal_core.device.device_memory_bytes", lambda device: 2**30)
    assert refused_here(config_of(resources={"workers": 1})) is None
    assert refused_here(config_of(resources={"workers": 4})) is None
    many = config_of(resources={"workers": 1000})
    said = refused_here(many)
    assert "resources.workers=1000" in said and "1.0 GiB are free" in said
    many.ray.address = "auto"  # the cluster's matter
    assert refused_here(many) is None


@pytest.mark.ray
def test_more_than_the_cluster_can_ever_have_is_refused_at_once(local_ray, config_of):
    begin = time.monotonic()
    with pytest.raises(UserError, match=r"2 workers of 500 CPU each.* 0 of 2 can ever start"):
        fit(config_of(resources={"workers": 2, "cpus_per_worker": 500}))
    assert time.monotonic() - begin < 5


@pytest.mark.ray
def test_the_wait_for_workers_is_bounded(no_cpu_free, config_of, tmp_path):
    with pytest.raises(RunFailedError, match=r"no workers after .*free in the cluster: 0 CPU"):
        fit(config_of(ray={"wait_seconds": 1.0}))
    assert not (tmp_path / "run" / WAITING_FILE).exists()


def test_a_start_that_was_given_up_takes_no_step_when_workers_come_after_all(config_of, tmp_path):
    config, run = config_of(ray={"wait_seconds": 0.001}), tmp_path / "run"
    run.mkdir()
    given_up, next_one = Wait(config, run), Wait(config, run)
    given_up.begin()
    given_up.look(stop_asked=False)
    with pytest.raises(RunFailedError, match="stopped as asked"):
        given_up.look(stop_asked=True)
    next_one.begin()
    with pytest.raises(RunFailedError, match="given up"):
        workers_are_up(run, given_up.start)
    workers_are_up(run, next_one.start)
    assert not list(run.iterdir())


@pytest.mark.ray
def test_a_request_to_stop_ends_the_wait(no_cpu_free, config_of, tmp_path):
    run = tmp_path / "run"

    def ask_to_stop():
        while not (run / WAITING_FILE).exists():
            time.sleep(0.01)
        (run / STOP_FILE).touch()

    threading.Thread(target=ask_to_stop, daemon=True).start()
    with pytest.raises(RunFailedError, match="stopped as asked while waiting for 1 worker"):
        fit(config_of())


def test_a_ray_that_is_not_up_in_time_is_told_in_words(config_of, monkeypatch):
    import ray

    def init(**_):
        raise Exception("The current node timed out during startup. This could happen because")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(RunFailedError, match="not up on this machine"), ray_session(config_of()):
        pass
