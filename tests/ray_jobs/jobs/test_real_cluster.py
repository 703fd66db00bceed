"""A real cluster: a head and worker nodes as processes of their own, behind a token.

`pytest -s -m slow tests/ray_jobs/jobs/test_real_cluster.py` prints every command and what it
answered.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from causal_core.checkpoints.contents import MANIFEST, verify_checkpoint
from causal_core.config_file import parse_config
from ray_jobs.training.trainer import fit
from tests.ray_nodes import RayNodes
from tests.run_process import PATIENCE_SECONDS, assert_same_course, last_step, wait_until
from tests.tiny_run import tiny_config, write_tiny_model
from tune_spaces.budget import Gate

pytestmark = [pytest.mark.ray, pytest.mark.timeout(3600)]

REPOSITORY = Path(__file__).resolve().parents[3]
BIN = Path(sys.executable).parent
FILL_OBJECT_STORES = """
import ray, time
ray.init()
@ray.remote(num_cpus=0, scheduling_strategy="SPREAD")
class Holder:
    def fill(self):
        self.kept = [ray.put(bytes(20_000_000)) for _ in range(8)]
        return len(self.kept)
holders = [Holder.remote() for _ in range(3)]
print("objects kept:", ray.get([holder.fill.remote() for holder in holders]), flush=True)
time.sleep(60)
"""
# What an operator gives the nodes; none of it may be written anywhere.
SECRETS = {
    "HF_TOKEN": "hf_canary_4c1f0a6e9d",
    "WANDB_API_KEY": "wandb_canary_77a0c1b2e3",
    "AWS_SECRET_ACCESS_KEY": "aws_canary_51d0e7f8a9",
}


@pytest.fixture(scope="module")
def nodes():
    with RayNodes(SECRETS) as cluster:
        yield cluster


@pytest.fixture
def say():
    """Prints what `pytest -s` is to show."""

    def show(text: str) -> None:
        print(text, flush=True)

    return show


@pytest.fixture
def command(nodes, tmp_path, say):
    """Runs a command as a user elsewhere would, and shows it."""

    def run(*arguments: object, token: str | None = None, code: int | None = 0) -> str:
        program, *rest = map(str, arguments)
        outcome = subprocess.run(
            [str(BIN / program), *rest], env=nodes.environment(token), cwd=tmp_path,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        output = re.sub(r"\x1b\[[0-9;]*m", "", outcome.stdout)
        say(f"\n$ {program} {' '.join(rest)}\n{output.rstrip()}\n[exit code {outcome.returncode}]")
        assert code is None or outcome.returncode == code, output
        return output

    return run


SUBMIT = ("causal", "submit", "--", "evaluate", "/nowhere")


@pytest.mark.slow
def test_only_the_token_submits_and_the_exit_code_is_the_jobs(nodes, command):
    """Faster, with servers that are none: test_hostile_server.py, test_jobs_command.py."""
    assert nodes.http_status("/api/jobs/") == 401
    assert nodes.http_status("/api/jobs/", "0" * 64) == 403
    assert "needs a token" in command(*SUBMIT, token="", code=1)
    assert "refused this environment's token" in command(*SUBMIT, token="0" * 64, code=1)
    output = command(*SUBMIT, code=1)  # the user's error, found by the job
    assert "no such run directory" in output and "exit code 1" in output


@pytest.mark.slow
def test_a_job_is_listed_and_its_log_stays(nodes, command):
    """Faster, with a job server that is none: test_jobs_command.py."""
    raw = ("ray", "job", "submit", "--address", nodes.address, "--", "echo", "reached")
    assert "reached" not in command(*raw, token="", code=1).replace("echo reached", "")
    before = {job["job"] for job in json.loads(command("causal", "jobs", "list", "--json"))}
    command(*SUBMIT, code=1)
    listed = json.loads(command("causal", "jobs", "list", "--json"))
    (job,) = [job for job in listed if job["job"] not in before]
    assert job["status"] == "FAILED" and job["exit_code"] == 1
    assert "no such run directory" in command("causal", "jobs", "logs", job["job"])
    assert "has ended already" in command("causal", "jobs", "stop", job["job"])
    assert "does not exist" in command("causal", "jobs", "logs", "nonsense", code=1)


@pytest.fixture(scope="module")
def files(tmp_path_factory, tiny_data):
    """A config on "shared storage", and the same run in this process."""
    folder = tmp_path_factory.mktemp("shared")
    config = tiny_config(
        write_tiny_model(folder / "model", hidden=128), tiny_data, folder / "unused",
        lora={"rank": 32, "dropout": 0.0},  # equal on any number of workers
        train={"epochs": 44, "global_batch": 4},  # 220 steps, an epoch's end every 5
        checkpoint={"every_steps": 4, "keep_last": 2},
        resources={"workers": 1, "threads": 1},
        ray={"max_failures": 4},
    )  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(config.to_yaml())
    reference = config.model_copy(deep=True)
    reference.resources.workers, reference.run.dir = 0, str(folder / "reference")
    fit(reference)
    return folder, path


@pytest.mark.slow
def test_a_job_over_two_nodes_survives_the_loss_of_one(nodes, files, command, say, tmp_path):
    folder, config = files
    for name in ("node-1", "node-2"):
        nodes.add_node(name)
    say(f"\nnodes alive: {', '.join(sorted(nodes.alive()))}")

    # The raw way, from another directory than the checkout's.
    raw = command(
        "ray", "job", "submit", "--address", nodes.address, "--working-dir", REPOSITORY, "--",
        "python", "-m", "ray_jobs.train", "--config", config, "--no-evaluate",
        f"run.dir={folder / 'raw'}", "train.max_steps=3", "resources.workers=2",
    )  # fmt: skip
    assert "3 of 3 optimizer steps" in raw

    run = folder / "elastic"
    follower = tmp_path / "follower.log"
    arguments = [
        "causal", "submit", "--", "train", str(config), "--no-evaluate", f"run.dir={run}",
        "resources.workers=[1,2]",
    ]  # fmt: skip
    say(f"\n$ {' '.join(arguments)} &")
    with follower.open("w") as log:
        following = subprocess.Popen(
            [str(BIN / "causal"), *arguments[1:]], env=nodes.environment(), cwd=tmp_path,
            stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        wait_until(lambda: last_step(run) >= 8 or following.poll() is not None, "step 8")
        assert following.poll() is None, follower.read_text()
        for name in ("node-1", "node-2"):
            assert any("RayTrainWorker" in title for title in nodes.titles(name)), name
        refused = command("causal", "submit", "--", *arguments[3:], code=1)
        assert "is writing" in refused
        killed = nodes.kill_node("node-2")
        started = time.monotonic()
        time.sleep(1)  # the other worker cannot end its step alone
        last = last_step(run)
        say(f"\nafter step {last}: kill -9 of node-2 ({len(killed)} processes)")
        wait_until(lambda: last_step(run) != last, "resume")
        say(f"training again after {time.monotonic() - started:.1f} s")
        # Asks for two CPUs where one is left, and that one is taken.
        waiting = folder / "waiting"
        (waiting / "checkpoints" / "step-00000099").mkdir(parents=True)  # of a crashed, older run
        output = command(
            "causal", "submit", "--no-follow", "--", "train", config, "--no-evaluate",
            f"run.dir={waiting}", "resources.workers=2", "train.max_steps=3",
            "logging.format=json", "ray.wait_for_nodes=true",
        )  # fmt: skip
        assert "the job waits for an autoscaler" in output
        second = re.search(r"^job +(\S+)", output, re.M)[1]
        assert following.wait(timeout=PATIENCE_SECONDS) == 0, follower.read_text()
    finally:
        following.kill()
    say(follower.read_text())
    summary = json.loads((run / "summary.json").read_text())["run"]
    assert summary["finished"] and summary["workers"] == 1
    assert_same_course(folder / "reference", run)
    say("same batches and losses as the run in one process that nothing happened to")

    assert last_step(waiting) == 0, "it had nothing to run on"
    nodes.add_node("node-3")  # a cold one
    say(f"\nnodes alive: {', '.join(sorted(nodes.alive()))}")
    log = command("causal", "jobs", "logs", second, "--follow")
    events = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert events[-1]["message"] == "run finished" and events[-1]["steps"] == 3
    assert all(event["run"] == str(waiting) and event["time"] for event in events)
    assert last_step(waiting) == 3
    assert verify_checkpoint(waiting / "checkpoints" / "step-00000003")
    command("causal", "jobs", "list")


@pytest.mark.slow
def test_a_stopped_job_saves_and_the_next_one_continues(nodes, files, command, say):
    folder, config = files
    if "node-1" not in nodes.alive():
        nodes.add_node("node-1")
    run = folder / "stopped"
    arguments = ("--", "train", config, "--no-evaluate", f"run.dir={run}")
    output = command("causal", "submit", "--no-follow", *arguments)
    job = re.search(r"^job +(\S+)", output, re.M)[1]
    wait_until(lambda: last_step(run) >= 3, "step 3")
    exported = r'^ray_causal_(\w+)\{.*run="stopped".*\} (\S+)$'
    wait_until(lambda: "memory_planned" in nodes.prometheus(), "metrics on Ray's endpoint")
    metrics = dict(re.findall(exported, nodes.prometheus(), re.M))
    say(f"\nmetrics of the run, as Prometheus scrapes them: {metrics}")
    assert float(metrics["step"]) >= 3 and float(metrics["memory_peak_bytes"]) > 1e8
    planned, measured = (float(metrics[f"memory_{x}_bytes"]) for x in ("planned", "measured"))
    assert planned == pytest.approx(measured, rel=0.1)
    assert {"step_seconds", "tokens_per_second", "loss"} <= metrics.keys()
    command("causal", "jobs", "stop", job)
    assert "STOPPED, exit code 3" in command("causal", "jobs", "logs", job, "--follow", code=3)
    stopped = last_step(run)
    assert 3 <= stopped < 220
    assert (run / "checkpoints" / f"step-{stopped:08d}" / MANIFEST).is_file()
    # Meanwhile other users' objects fill the stores of all nodes (100 MB each) beyond their size.
    output = command("ray", "job", "submit", "--address", nodes.address, "--no-wait", "--",
                     "python", "-c", FILL_OBJECT_STORES)  # fmt: skip
    filler = re.search(r"Job '(\S+)' submitted", output)[1]
    command("causal", "submit", *arguments)
    assert "objects kept: [8, 8, 8]" in command("causal", "jobs", "logs", filler)
    assert_same_course(folder / "reference", run)


@pytest.mark.slow
def test_a_preempted_node_costs_no_step(nodes, files, command, say, tmp_path):
    """SIGTERM to one of two nodes: Ray drains it, the run saves at the next step boundary."""
    folder, config = files
    for name in ("node-5", "node-6"):
        nodes.add_node(name)
    run, follower = folder / "preempted", tmp_path / "preempted.log"
    arguments = ["submit", "--", "train", str(config), "--no-evaluate", f"run.dir={run}",
                 "resources.workers=[1,2]", "checkpoint.every_steps=1000",
                 "ray.max_failures=0"]  # fmt: skip
    with follower.open("w") as log:
        following = subprocess.Popen(
            [str(BIN / "causal"), *arguments], env=nodes.environment(), cwd=tmp_path,
            stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        wait_until(lambda: last_step(run) >= 3 or following.poll() is not None, "step 3")
        assert following.poll() is None, follower.read_text()
        hosts = [name for name in nodes.alive()
                 if any("RayTrainWorker" in title for title in nodes.titles(name))]  # fmt: skip
        nodes.preempt_node(hosts[0])
        assert following.wait(timeout=PATIENCE_SECONDS) == 0, follower.read_text()
    finally:
        following.kill()
    say(follower.read_text())
    assert "leaving the cluster: saving a checkpoint" in follower.read_text()
    summary = json.loads((run / "summary.json").read_text())["run"]
    assert summary["finished"]
    assert_same_course(folder / "reference", run)


@pytest.mark.slow
def test_a_sweep_runs_as_a_job_on_two_types_of_device(nodes, files, command, tmp_path):
    """Rank 2 fits the small device, rank 64 the large one only, rank 512 none."""
    folder, config = files
    nodes.add_node("node-7", accelerator_type="SMALL")
    nodes.add_node("node-8", accelerator_type="LARGE")
    tree = yaml.safe_load(config.read_text())
    ranks = [2, 64, 512]
    needs = [
        Gate({}).smallest_plan(parse_config(tree | {"lora": {**tree["lora"], "rank": rank}}))
        for rank in ranks
    ]
    small, large, _ = (plan.required_bytes + 2**20 for plan in needs)
    tree["tune"] = {
        "space": {"lora.rank": {"kind": "choice", "values": ranks}},
        "searcher": "grid", "trials": 3, "objectives": ["benign_nll"], "asha": {"enabled": False},
        "gpu_memory": {"SMALL": f"{small}", "LARGE": f"{large}"},
    }  # fmt: skip
    path, run = folder / "sweep.yaml", folder / "sweep"
    path.write_text(yaml.safe_dump(tree))
    log = command("causal", "submit", "--", "tune", path, f"run.dir={run}", "train.max_steps=4")
    assert "SUCCEEDED, exit code 0" in log and "best.yaml" in log
    rows = {
        row["point.lora.rank"]: row for row in pq.read_table(run / "results.parquet").to_pylist()
    }
    assert {rank: row["status"] for rank, row in rows.items()} == {
        "2": "finished", "64": "finished", "512": "refused",
    }  # fmt: skip
    assert [rows[rank]["accelerator_type"] for rank in ("2", "64")] == ["SMALL", "LARGE"]
    assert rows["64"]["predicted_bytes"] > small
    best = command("causal", "submit", "--", "train", run / "best.yaml", "--no-evaluate")
    assert "4 of 4 optimizer steps" in best


@pytest.mark.slow
def test_no_secret_is_written_anywhere(nodes, files, tmp_path):
    """Runs last: scans logs, uploads, run directories and checkpoints of the tests above."""
    folder, _ = files
    secrets = [value.encode() for value in (*SECRETS.values(), nodes.token)]
    scanned = 0
    for root in (folder, *nodes.sessions):
        for path in root.rglob("*"):
            if not path.is_file() or path.is_symlink():
                continue
            scanned += 1
            content = path.read_bytes()
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    content += b"".join(map(archive.read, archive.namelist()))
            found = [secret for secret in secrets if secret in content]
            assert not found, path
    assert scanned > 100
