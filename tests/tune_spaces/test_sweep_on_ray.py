"""Real sweeps on Ray: refused, stopped, crashed and killed trials, and what is left afterwards.

1. A sweep refuses, stops (ASHA), finishes, and leaves no placement group and no CPU behind.
2. Its best config, trained afresh, gives the same metrics.
3. kill -9 of the whole program: the same command continues interrupted trials from their
   checkpoints; kill -9 of one trial's worker fails that trial alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from causal_core.config_file import load_config
from causal_core.files import write_whole
from tests.run_process import PATIENCE_SECONDS, RAYS_OWN
from tests.tune_spaces.sweeps import tiny_sweep, write_sweep
from tune_spaces.budget import Gate
from tune_spaces.ledger import Ledger

pytestmark = [pytest.mark.drawn, pytest.mark.slow, pytest.mark.ray]

SPACE = {
    "lora.rank": {"kind": "choice", "values": [2, 512]},
    "train.learning_rate": {"kind": "choice", "values": [1e-2, 1e-9]},
}


def wait_for(condition, what, process=None, seconds=PATIENCE_SECONDS):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        if process is not None and process.poll() is not None:
            raise AssertionError(f"ended before {what}")
        time.sleep(0.05)
    raise AssertionError(f"no {what} within {seconds} s")


@pytest.fixture(scope="module")
def swept(local_ray, tiny_model_directory, tiny_data, tmp_path_factory):
    """A finished sweep on Ray: two of four points refused, one of two trials stopped."""
    import ray

    from tune_spaces.sweep import run_sweep

    def sweep(budget):
        run = tmp_path_factory.mktemp("sweep") / "run"
        return tiny_sweep(
            tiny_model_directory, tiny_data, run, space=SPACE, searcher="grid",
            objectives=["benign_nll"], max_concurrent=1, gpu_memory=budget,
        )  # fmt: skip

    gate, free = Gate({}), sweep(None)
    needs = [
        gate.smallest_plan(free.tune.space.apply(free.run, {"lora.rank": r})).required_bytes
        for r in (2, 512)
    ]
    tight = sweep(str(sum(needs) // 2))
    summary = run_sweep(tight, Console(stderr=True))
    wait_for(lambda: ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"],
             "CPU given back", seconds=30)  # fmt: skip
    return tight, summary, ray.util.placement_group_table()


def test_a_sweep_refuses_stops_finishes_and_leaves_nothing_behind(swept):
    sweep, summary, groups = swept
    assert summary["counts"] == {
        "finished": 1, "stopped": 1, "failed": 0, "refused": 2, "running": 0,
    }  # fmt: skip
    states = {t["status"]: t for t in summary["trials"]}
    assert states["finished"]["point"]["train.learning_rate"] == 1e-2
    assert "behind the others at step 2" in states["stopped"]["reason"]
    assert {g["state"] for g in groups.values()} <= {"REMOVED"}
    metrics = states["finished"]["metrics"]
    for name in ("attack_success", "uplift", "benign_exact", "attacked_exact"):
        assert metrics[name]["low"] <= metrics[name]["value"] <= metrics[name]["high"]
    assert metrics["peak_memory_bytes"]["value"] > 0 and metrics["seconds"]["value"] > 0
    rows = pq.read_table(sweep.directory / "results.parquet").to_pylist()
    assert [row["status"] for row in rows].count("refused") == 2
    assert (sweep.directory / "report.html").is_file()


def test_the_best_config_trained_afresh_gives_the_same_metrics(swept):
    from ray_jobs.training.trainer import fit
    from tune_spaces.trial import judge

    sweep, summary, _ = swept
    best = load_config(sweep.directory / "best.yaml")
    run = fit(best)
    directory = Path(best.run.dir)
    write_whole(directory / "summary.json", json.dumps({"run": run}))
    again = judge(best)
    first = next(t for t in summary["trials"] if t["number"] == summary["best"])["metrics"]
    for name in set(first) - {"seconds", "peak_memory_bytes"}:
        assert again[name] == first[name], name
    trial = sweep.directory / "trials" / f"{summary['best']:04d}"
    logs = [(d / "metrics.jsonl").read_text() for d in (directory, trial)]
    assert logs[0] == logs[1]


def test_a_finished_sweep_is_not_run_again(swept):
    from tune_spaces.sweep import run_sweep

    sweep, summary, _ = swept
    began = time.monotonic()
    assert run_sweep(sweep, Console(stderr=True))["trials"] == summary["trials"]
    assert time.monotonic() - began < 15


@pytest.fixture
def command(tiny_model_directory, tiny_data, tmp_path):
    """`causal tune` as a program of its own, whose processes end with the test."""
    path = tmp_path / "sweep.yaml"
    write_sweep(
        path, tiny_model_directory, tiny_data, tmp_path / "run",
        {"train": {"epochs": 16}, "ray": {"max_failures": 0}, "checkpoint": {"every_steps": 4}},
        space={"train.learning_rate": {"kind": "choice", "values": [1e-2, 5e-3, 1e-3]}},
        searcher="grid", objectives=["uplift", "benign_nll"],
    )  # fmt: skip
    started = []

    def start():
        environment = {**os.environ, "RAY_TMPDIR": short}
        environment.pop("RAY_ADDRESS", None)
        output = (tmp_path / f"output-{len(started)}").open("w")
        process = subprocess.Popen(
            [sys.executable, "-m", "tune_spaces.cli", "tune", str(path)],
            env=environment, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
        started.append(process)
        return process

    with tempfile.TemporaryDirectory(prefix="cs", dir="/tmp", ignore_cleanup_errors=True) as short:
        yield start, tmp_path / "run"
        for process in started:
            if process.poll() is None:
                end_tree(process)


def end_tree(process):
    """kill -9 of the program and, as the system would in time, of the Ray it had started."""
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    psutil.wait_procs(children, timeout=20)
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def workers_of(process):
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any("ray::RayTrainWorker" in part for part in child.cmdline()):
                found.append(child)
    return found


def checkpoints(run, number):
    return sorted((run / "trials" / f"{number:04d}" / "checkpoints").glob("step-*"))


def test_kill_9_of_the_sweep_continues_and_a_crash_stays_alone(command):
    start, run = command
    process = start()
    wait_for(lambda: checkpoints(run, 0) and checkpoints(run, 1), "checkpoints of two", process)
    end_tree(process)
    before = Ledger(run).trials
    # On one core one may be over before the other begins.
    cut = [t.number for t in before if t.status == "running"]
    assert cut and len(before) == 2 and {t.status for t in before} <= {"running", "finished"}
    process = start()
    # Two at a time: the third begins when one of the first two is over, and is then alone.
    wait_for(lambda: [t.is_over for t in Ledger(run).trials] == [True, True, False]
             and checkpoints(run, 2), "the third trial alone", process)  # fmt: skip
    for worker in wait_for(lambda: workers_of(process), "its worker", process):
        worker.send_signal(signal.SIGKILL)
    assert process.wait(timeout=240) == 0, "a failed trial does not fail the sweep"
    after = {t.number: t for t in Ledger(run).trials}
    assert {n: t.status for n, t in after.items()} == {0: "finished", 1: "finished", 2: "failed"}
    for number in (0, 1):
        summary = json.loads((run / "trials" / f"{number:04d}" / "summary.json").read_text())["run"]
        if number in cut:
            assert 0 < summary["steps_now"] < summary["steps"], "resumed from its checkpoint"
        assert after[number].point == before[number].point
    printed = "".join(path.read_text() for path in run.parent.glob("output-*"))
    assert not RAYS_OWN.search(printed), printed
    assert "a worker died" in (run / "log" / "ray.log").read_text().lower()
    assert "Traceback" in (run / "trials" / "0002" / "log" / "failure.log").read_text()
