"""One Ray on this machine for all tests that need it."""

from __future__ import annotations

import tempfile

import pytest


@pytest.fixture(scope="session")
def local_ray():
    """A local Ray with a short path for its sockets (they are limited to 107 bytes)."""
    from causal_core.config import Config
    from ray_jobs.cluster import ray_session

    config = Config.model_validate({"resources": {"workers": 2}})
    with (
        tempfile.TemporaryDirectory(prefix="cr", dir="/tmp") as short,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RAY_TMPDIR", short)
        patch.delenv("RAY_ADDRESS", raising=False)
        with ray_session(config):
            yield
