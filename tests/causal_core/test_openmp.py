"""How long torch's threads spin is set before torch is there, and the user's own setting stays."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from causal_core.openmp import SETTINGS


def what_libgomp_read(**environment: str) -> dict[str, str]:
    """The settings of libgomp in a process that imports this project, as it displays them."""
    inherited = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    found = subprocess.run(
        [sys.executable, "-c", "import causal_core.device"],
        env={**inherited, **environment, "OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = (line.partition("=") for line in found.stderr.splitlines())
    read = {name.split()[-1]: value.strip(" '") for name, _, value in lines if value}
    if "GOMP_SPINCOUNT" not in read:
        pytest.skip("torch runs on another OpenMP here")
    return read


def test_threads_spin_briefly():
    assert what_libgomp_read()["GOMP_SPINCOUNT"] == "1000"


@pytest.mark.parametrize(
    ("own", "spins"),
    [({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "passive"}, "0")],
    ids=["count", "policy"],
)
def test_what_the_user_set_stays(own, spins):
    assert what_libgomp_read(**own)["GOMP_SPINCOUNT"] == spins
