"""Workers wait for each other as the driver does: they inherit it here, and are told elsewhere."""

from __future__ import annotations

from causal_core.config import Config
from causal_core.openmp import SETTINGS
from ray_jobs.training.trainer import _worker_environment


def test_workers_of_a_cluster_are_told_how_threads_wait(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert _worker_environment(Config()) is None
    of_a_cluster = Config.model_validate({"ray": {"address": "auto"}})
    assert _worker_environment(of_a_cluster) == {"env_vars": {"OMP_WAIT_POLICY": "active"}}
