"""SIGTERM to a command: exit code 3 and one line, after its own tidying, whatever a library set."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest

from ray_jobs.console.exit_codes import RUN_FAILED, exit_with_code
from ray_jobs.stopping import sigterm_as_it_is, stopped_by_sigterm


def terminate():
    signal.raise_signal(signal.SIGTERM)


def test_a_command_tidies_up_and_says_that_it_was_stopped(capsys):
    tidied = []

    def command():
        try:
            try:
                terminate()
            except Exception:  # noqa: BLE001 - of a library that goes on after errors
                pytest.fail("taken for an error")
        finally:
            tidied.append(True)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as left:
        exit_with_code(command)
    assert left.value.code == RUN_FAILED and tidied
    said = capsys.readouterr().err
    assert said.startswith("run failed: stopped as asked (SIGTERM); the same command ")
    assert said.count("\n") == 1 and "Traceback" not in said
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_a_library_sets_while_it_starts_does_not_stay():
    with stopped_by_sigterm():
        with sigterm_as_it_is():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with pytest.raises(KeyboardInterrupt):
            terminate()


def test_another_thread_leaves_signals_alone():
    found = []

    def run():
        with stopped_by_sigterm():
            found.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [before]


@pytest.mark.ray
def test_ray_on_this_machine_does_not_abort_the_command(tmp_path):
    """Ray replaces the handler beneath Python's, which only a process of its own shows, and passes
    on what a handler raises within its calls, if it knows it."""
    command = (
        "import os, signal, threading, ray;"
        "from causal_core.config_file import parse_config;"
        "from ray_jobs.console.exit_codes import exit_with_code;"
        "from ray_jobs.training.ray_session import ray_session;\n"
        "def command():\n"
        f"    with ray_session(parse_config({{'run': {{'dir': {str(tmp_path)!r}}}}})):\n"
        "        never = ray.remote(num_cpus=1000)(lambda: 0).remote()\n"
        "        kill = os.kill, (os.getpid(), signal.SIGTERM)\n"
        "        threading.Timer(1, *kill).start()\n"
        "        ray.wait([never])\n"
        "exit_with_code(command)"
    )
    done = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == RUN_FAILED, done.stderr
    assert done.stderr.startswith("run failed: stopped as asked (SIGTERM)"), done.stderr
    assert done.stderr.count("\n") == 1
