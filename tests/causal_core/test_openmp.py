"""How torch's threads wait: set before torch is there, changed while others have the cores."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from causal_core import openmp
from causal_core.openmp import SETTINGS, Crowding, kept_waiting, watch_neighbours

LONG, SHORT = openmp._LONG_SPINS, openmp._SHORT_SPINS


def in_a_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=True,
    )


def what_libgomp_read(**environment: str) -> dict[str, str]:
    """The settings of libgomp in a process that imports this project, as it displays them."""
    found = in_a_process("import causal_core.device", **environment, OMP_DISPLAY_ENV="verbose")
    lines = (line.partition("=") for line in found.stderr.splitlines())
    read = {name.split()[-1]: value.strip(" '") for name, _, value in lines if value}
    if "GOMP_SPINCOUNT" not in read:
        pytest.skip("torch runs on another OpenMP here")
    return read


def test_threads_spin_for_as_long_as_python_takes_between_operations():
    assert what_libgomp_read()["GOMP_SPINCOUNT"] == LONG if openmp._can_tell() else SHORT


@pytest.mark.parametrize(("can_tell", "spins"), [(True, LONG), (False, SHORT)])
def test_they_spin_briefly_where_neighbours_cannot_be_seen(monkeypatch, can_tell, spins):
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(openmp, "_can_tell", lambda: can_tell)
    openmp.set_waiting()
    assert openmp.in_force() == {"GOMP_SPINCOUNT": spins}


@pytest.mark.parametrize(
    ("own", "spins"),
    [({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "passive"}, "0")],
    ids=["count", "policy"],
)
def test_what_the_user_set_stays(own, spins):
    assert what_libgomp_read(**own)["GOMP_SPINCOUNT"] == spins


# Seconds of CPU that pass while the main thread sleeps after operations of two threads, of which
# the second spins, unless it is told otherwise, for as long as the process lives.
_SPINNING = """
import json, time
import torch
from causal_core.openmp import ShortSpins
torch.set_num_threads(2)
short = ShortSpins(2, CORES)
def slept():
    begin, cpu = time.perf_counter(), time.process_time()
    while time.process_time() - cpu < 0.3 and time.perf_counter() - begin < SECONDS:
        torch.zeros(1 << 17).add_(1)  # again: a thread that has ended is counted for a moment
        time.sleep(0.1)
    return time.process_time() - cpu
slept()
short.hold()
first = slept()
short.release()
spinning = slept()
print(json.dumps([first, spinning, short.held]))
"""


@pytest.mark.skipif(not openmp._can_tell(), reason="neighbours cannot be seen here")
def test_threads_sleep_at_once_while_more_of_them_are_held_than_there_are_cores():
    cores = len(os.sched_getaffinity(0))
    if cores == 1:
        pytest.skip("libgomp always has more threads than one core")
    code = _SPINNING.replace("CORES", str(cores)).replace("SECONDS", "6")
    found = in_a_process(code, GOMP_SPINCOUNT="30000000000")
    held, released, is_held = json.loads(found.stdout)
    assert held < 0.2 and released >= 0.3  # 60 operations, and spinning
    assert not is_held


@pytest.mark.parametrize(
    ("shares", "crowded"),
    [
        ([0.0, 0.02, 0.09, 0.5, 0.02], [0, 0, 0, 1, 1]),
        ([0.5, 0, 0, 0, 0, 0.09, 0.5], [1, 1, 1, 1, 0, 0, 1]),
        ([0.5, 0, 0, 0, 0.05, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1, 0]),  # a quiet spell must last
    ],
)
def test_threads_make_way_at_once_and_come_back_when_it_has_been_quiet(shares, crowded):
    crowding = Crowding()
    assert [crowding.look(share) for share in shares] == [bool(c) for c in crowded]


def test_threads_that_wait_for_a_core_are_counted():
    found = kept_waiting()
    assert str(os.getpid()) in found
    assert all(nanoseconds >= 0 for nanoseconds in found.values())


@pytest.mark.parametrize("own", [{"GOMP_SPINCOUNT": "77"}, {"OMP_WAIT_POLICY": "passive"}])
def test_nothing_is_watched_where_the_user_has_said_how_threads_wait(monkeypatch, own):
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    watch_neighbours(2, 2)
    assert openmp._watch is None


def test_one_thread_has_nobody_to_wait_for_and_a_watch_ends_with_the_next(monkeypatch):
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", LONG)
    monkeypatch.setattr(openmp, "_can_tell", lambda: True)
    watch_neighbours(2, 2)
    watch = openmp._watch
    assert watch is not None and watch.thread.is_alive()
    watch_neighbours(1, 2)
    assert openmp._watch is None and not watch.thread.is_alive()
