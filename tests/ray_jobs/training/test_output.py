"""What a run on Ray prints when something goes wrong: this program's own words, and nothing else
(`Command.finish` looks for Ray's and for escape codes, in all tests of faults).

Real runs as processes of their own, whose output goes to a file, as in a pipe.

1. A killed worker: said in our words, without a traceback, a colour or a line of Ray.
2. A run that fails through Ray: one sentence, which names the file with Ray's own account.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

import pytest

from tests.run_process import WORKER, Command
from tests.tiny_run import tiny_config, write_tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.ray]


@pytest.fixture
def command(tiny_data, tmp_path):
    config = tiny_config(
        write_tiny_model(tmp_path / "model", hidden=128), tiny_data, tmp_path / "unused",
        train={"epochs": 12, "global_batch": 4},  # 60 steps
        checkpoint={"every_steps": 4},
        resources={"workers": (1, 1), "threads": 1},  # elastic: through Ray, though it is one
    )  # fmt: skip
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    with tempfile.TemporaryDirectory(prefix="co", dir="/tmp") as short:
        made = Command(path, tmp_path / "run", Path(short))
        yield made
        made.close()


def kill_a_worker(command):
    command.start()
    command.wait_for_step(7)
    command.kill(WORKER)


def test_a_killed_worker_is_told_in_our_words(command):
    kill_a_worker(command)
    command.finish()
    print(text := command.text())  # for pytest -s
    told = re.findall(r"^(?:WARNING|INFO) (.*)$", text, re.M)
    # Where Ray takes more than a minute to start, the wait for it is told, too.
    failed, again, resumed = [line for line in told if not line.startswith("waiting for ")]
    assert failed.startswith("worker 0 failed: ")
    assert again == "the workers were started again; they go on from the last checkpoint"
    assert re.fullmatch(r"resumed from step-\d{8}", resumed)
    assert "60 of 60 optimizer steps" in text
    log = command.directory / "log"
    kept = [json.loads(line) for line in (log / "worker-0.jsonl").read_text().splitlines()]
    assert [record["message"] for record in kept] == [again, resumed]
    assert all(record["rank"] == 0 and record["time"] for record in kept)
    assert not (log / "failure.log").exists()


def test_a_run_that_fails_through_ray_names_the_file_with_its_account(command):
    command.overrides = ("ray.max_failures=0", "logging.format=json")
    kill_a_worker(command)
    command.finish(code=3)
    print(text := command.text())
    *earlier, last = (json.loads(line)["message"] for line in text.splitlines())
    assert any(message.startswith("worker 0 failed: ") for message in earlier)
    account = command.directory / "log" / "failure.log"
    assert last.startswith("run failed: the training workers failed: ")
    assert last.endswith(f"Ray's full error is in {account}")
    assert "Traceback (most recent call last)" in account.read_text()
    assert "\x1b" not in account.read_text()
