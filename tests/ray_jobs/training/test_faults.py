"""Real faults against real runs on Ray: processes are killed, storage goes away (invariant I4).

Every run is a command of its own in its own process, as a user would start it. After the fault, and
after running the same command again where that is needed, the final adapter, head, optimizer state
and training metrics are bit-identical to those of the run that nothing happened to.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from causal_core.checkpoints.contents import MANIFEST, verify_checkpoint
from tests.run_process import CONTROLLER, WORKER, Command, assert_same_course
from tests.tiny_run import tiny_config, write_tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.ray]


@pytest.fixture(scope="module")
def config_file(tiny_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    config = tiny_config(
        write_tiny_model(folder / "model", hidden=128), tiny_data, folder / "unused",
        lora={"rank": 32, "dropout": 0.1},
        train={"epochs": 12, "global_batch": 4},  # 60 steps, an epoch's end every 5
        checkpoint={"every_steps": 4, "keep_last": 3},
        resources={"workers": (1, 1), "threads": 1},  # elastic: through Ray, though it is one
        ray={"max_failures": 3},
    )  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(config.to_yaml())
    return path


@pytest.fixture
def command(config_file, tmp_path):
    with tempfile.TemporaryDirectory(prefix="cf", dir="/tmp") as short:
        made = Command(config_file, tmp_path / "run", Path(short))
        yield made
        made.close()


@pytest.fixture(scope="module")
def undisturbed(config_file, tmp_path_factory):
    with tempfile.TemporaryDirectory(prefix="cf", dir="/tmp") as short:
        made = Command(config_file, tmp_path_factory.mktemp("undisturbed") / "run", Path(short))
        made.run()
        return made.final_state()


@pytest.fixture
def row(capsys):
    """Prints one row of the table of faults."""

    def show(fault: str, command: Command, undisturbed: dict[str, str], how: str) -> None:
        found = command.final_state()
        same = found == undisturbed
        hashes = [state["adapter_model.safetensors"][:12] for state in (undisturbed, found)]
        seconds = ", ".join(f"{s:.1f} s" for s in command.seconds_to_new_step) or "-"
        repeated = ", ".join(map(str, command.steps_repeated)) or "-"
        with capsys.disabled():
            print(
                f"\n| {fault} | {how} | repeated {repeated} | identical {same} "
                f"({hashes[0]} = {hashes[1]}) | kill to new step {seconds} |"
            )
        assert same

    return show


def _holds_files(folder: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):  # taken away meanwhile
        return any(folder.iterdir())
    return False


def test_a_worker_killed_in_the_middle_of_a_step(command, undisturbed, row):
    command.start()
    last = command.wait_for_step(7)
    command.kill(WORKER)
    command.wait_for_recovery(max(last, *command.steps()))
    command.finish()
    row("kill -9 of the worker, in a step", command, undisturbed, "went on by itself")


def test_two_kills_in_a_row(command, undisturbed, row):
    command.start()
    for step in (7, 22):
        last = command.wait_for_step(step)
        command.kill(WORKER)
        command.wait_for_recovery(max(last, *command.steps()))
    command.finish()
    row("kill -9 of the worker, twice", command, undisturbed, "went on by itself")


def test_a_worker_killed_while_it_saves(command, undisturbed, row):
    command.start()
    command.wait_for_step(6)
    temporary = command.temporary / "t"

    whole = set()

    def saving():
        begun = set(filter(_holds_files, temporary.glob("causal-checkpoint-*")))
        whole.update(folder for folder in begun if (folder / MANIFEST).exists())
        return begun - whole  # one that was whole is taken away, file by file

    command.kill_in(WORKER, saving, "a save")
    assert saving()
    command.wait_for_recovery(max(command.steps()))
    command.finish()
    row("kill -9 of the worker, in a save", command, undisturbed, "went on by itself")


def test_a_worker_killed_while_it_uploads(command, undisturbed, row):
    command.start()
    command.wait_for_step(6)

    def newest():
        return max((command.directory / "checkpoints").glob("step-*"), default=None)

    known = newest()

    def uploading():  # an older one without its manifest is one that is taken away
        folder = newest()
        return folder != known and not (folder / MANIFEST).exists()

    command.kill_in(WORKER, uploading, "an upload")
    assert uploading()
    command.wait_for_recovery(max(command.steps()))
    command.finish()
    row("kill -9 of the worker, in an upload", command, undisturbed, "went on by itself")


def test_the_controller_killed(command, undisturbed, row):
    command.start()
    command.wait_for_step(7)
    command.kill(CONTROLLER)
    command.wait_for_recovery(max(command.steps()))
    command.finish()
    assert "a new one continues from the last checkpoint" in command.text()
    row("kill -9 of the controller", command, undisturbed, "went on by itself")


def test_the_controller_killed_with_no_failures_left(command, undisturbed, row):
    command.overrides = ("ray.max_failures=0",)
    command.start()
    last = command.wait_for_step(7)
    command.kill(CONTROLLER)
    command.finish(code=3)
    assert "the same command continues" in command.text()
    last = max(last, *command.steps())
    command.start()
    command.wait_for_recovery(last)
    command.finish()
    row("kill -9 of the controller, max_failures 0", command, undisturbed,
        "exit 3, next call resumed")  # fmt: skip


def test_the_driver_killed(command, undisturbed, row):
    command.start()
    command.wait_for_step(7)
    children = psutil.Process(command.process.pid).children(recursive=True)
    command.process.kill()
    command.killed_at = time.monotonic()
    command.process.wait()
    psutil.wait_procs(children, timeout=60)  # Ray's processes follow their driver
    last = max(command.steps())
    command.start()
    command.wait_for_recovery(last)
    command.finish()
    row("kill -9 of the driver", command, undisturbed, "next call resumed")


def test_sigterm_saves_at_the_next_step_boundary(command, undisturbed, row):
    command.start()
    command.wait_for_step(6)
    command.process.send_signal(signal.SIGTERM)
    command.killed_at = time.monotonic()
    command.finish(code=3)
    assert "as asked" in command.text()
    stopped = max(command.steps())
    verify_checkpoint(command.directory / "checkpoints" / f"step-{stopped:08d}")
    command.start()
    command.wait_for_step(stopped + 1)
    command.seconds_to_new_step.append(time.monotonic() - command.killed_at)
    command.steps_repeated.append(0)
    command.finish()
    row("SIGTERM", command, undisturbed, "saved, exit 3, next call resumed")


def test_no_failures_left_then_the_next_call_resumes(command, undisturbed, row):
    command.overrides = ("ray.max_failures=0",)
    command.start()
    command.wait_for_step(7)
    command.kill(WORKER)
    command.finish(code=3)
    last = max(command.steps())
    command.start()
    command.wait_for_recovery(last)
    command.finish()
    row("kill -9, max_failures 0", command, undisturbed, "exit 3, next call resumed")


def test_storage_that_goes_away_leaves_the_last_good_checkpoint(command, undisturbed, row):
    command.overrides = ("ray.max_failures=0",)
    command.start()
    command.wait_for_step(6)
    folder = command.directory / "checkpoints"
    command.wait_until(lambda: list(folder.glob(f"step-*/{MANIFEST}")) or None, "a checkpoint")
    # A directory that becomes a file refuses every write, to root as well.
    aside = command.directory / "aside"
    folder.rename(aside)
    folder.touch()
    command.finish(code=3)
    folder.unlink()
    shutil.move(aside, folder)
    verify_checkpoint(sorted(folder.glob(f"step-*/{MANIFEST}"))[-1].parent)
    command.run()
    row("storage gone at save time", command, undisturbed, "exit 3, next call resumed")


def test_another_number_of_workers_continues_the_same_data(command, config_file, undisturbed):
    """Killed on two workers, continued on one: same batches, losses equal within rounding."""
    exact = ("lora.dropout=0", "train.epochs=2", "resources.cpus_per_worker=1")
    whole = Command(config_file, command.directory.with_name("whole"), command.temporary)
    whole.overrides = exact
    whole.run()
    command.overrides = (*exact, "resources.workers=2", "ray.max_failures=0")
    command.start()
    command.wait_for_step(5)
    command.kill(WORKER)
    command.finish(code=3)
    command.overrides = exact
    command.run()
    assert_same_course(whole.directory, command.directory)


def test_an_elastic_run_goes_on_with_one_worker_when_a_node_is_lost(command, config_file):
    """`workers: [1, 2]` on a head and a second node; the second node's processes are killed."""
    from ray.cluster_utils import Cluster

    exact = ("lora.dropout=0", "train.epochs=4")
    whole = Command(config_file, command.directory.with_name("whole"), command.temporary)
    whole.overrides = exact
    whole.run()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        second = cluster.add_node(num_cpus=1)
        command.overrides = (*exact, "resources.workers=[1,2]", f"ray.address={cluster.address}")
        command.start()
        command.wait_for_step(6)
        cluster.remove_node(second, allow_graceful=False)
        command.finish()
    finally:
        cluster.shutdown()
    assert_same_course(whole.directory, command.directory)
    summary = json.loads((command.directory / "summary.json").read_text())["run"]
    assert summary["workers"] == 1 and summary["finished"]
