"""`causal submit` and `causal jobs list|logs|stop` against a job server that is none; a real one:
slow, in test_real_cluster.py."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass, field

import pytest
from ray.job_submission import JobStatus

from ray_jobs.cli import main
from ray_jobs.jobs import client as connection
from ray_jobs.jobs import submit
from ray_jobs.jobs.command import _started
from ray_jobs.jobs.follow import RUN_DIR
from tests.command_line import command


@dataclass
class Details:
    """The part of Ray's JobDetails that is looked at."""

    submission_id: str | None
    status: JobStatus
    start_time: int
    driver_exit_code: int | None = None
    end_time: int | None = None
    entrypoint: str = "python -m ray_jobs.train"
    metadata: dict[str, str] = field(default_factory=dict)


class Server:
    """Answers as Ray's client does, a 404 for jobs that it does not know included."""

    def __init__(self) -> None:
        self.jobs = [
            Details("old", JobStatus.FAILED, 1_000, 1, 2_000, metadata={RUN_DIR: "/shared/run"}),
            Details(None, JobStatus.RUNNING, 3_000),  # a driver that nobody submitted
            Details("new", JobStatus.RUNNING, 2_000),
        ]
        self.stopped: list[str] = []

    def list_jobs(self) -> list[Details]:
        return self.jobs

    def get_job_info(self, name: str) -> Details:
        for job in self.jobs:
            if job.submission_id == name:
                return job
        raise RuntimeError(f"Request failed with status code 404: Job {name} does not exist.")

    def get_job_logs(self, name: str) -> str:
        return f"error: no finished run ({name})\n\x1b]0;title\x07"

    async def tail_job_logs(self, name: str):
        yield self.get_job_logs(name)

    def submit_job(self, *, entrypoint, runtime_env, metadata) -> str:
        with zipfile.ZipFile(runtime_env["working_dir"]) as archive:
            self.uploaded = archive.namelist()
        failed = Details("mine", JobStatus.FAILED, 4_000, 1, 5_000, entrypoint, metadata)
        self.jobs.append(failed)
        return "mine"

    def stop_job(self, name: str) -> None:
        self.stopped.append(name)


@pytest.fixture
def server(monkeypatch):
    made = Server()
    monkeypatch.setattr(connection, "connect", lambda address: made)
    monkeypatch.setattr(submit, "connect", lambda address: made)
    monkeypatch.setattr(submit, "cluster_nodes", lambda address: [])
    monkeypatch.setattr(submit, "exposure", lambda address: [])
    return made


def jobs(*arguments):
    return command(main, "jobs", *arguments)


def test_submitted_jobs_are_listed_the_newest_first(server):
    found = json.loads(jobs("list", "--json").stdout)
    assert [job["job"] for job in found] == ["new", "old"]
    assert found[1]["status"] == "FAILED" and found[1]["exit_code"] == 1
    assert found[1]["run_dir"] == "/shared/run"
    table = jobs("list").stdout
    assert table.index("new") < table.index("old") and "/shared/run" in table


def test_a_log_is_printed_and_cannot_drive_the_terminal(server):
    outcome = jobs("logs", "old")
    assert outcome.returncode == 0 and "no finished run (old)" in outcome.stdout
    assert "\x1b" not in outcome.stdout
    unknown = jobs("logs", "nonsense")
    assert unknown.returncode == 1 and "does not exist" in unknown.stderr


def test_only_a_job_that_runs_is_stopped(server):
    assert "has ended already: FAILED" in jobs("stop", "old").stdout
    assert server.stopped == []
    assert "was asked to stop" in jobs("stop", "new").stdout
    assert server.stopped == ["new"]


def test_a_submitted_command_leaves_with_the_exit_code_of_its_job(server):
    outcome = command(main, "submit", "--", "evaluate", "/shared/another")
    assert outcome.returncode == 1 and "no finished run (mine)" in outcome.stdout
    job = server.get_job_info("mine")
    assert job.entrypoint == "python -m ray_jobs.cli evaluate /shared/another"
    assert job.metadata == {RUN_DIR: "/shared/another", "command": "evaluate"}
    assert "ray_jobs/cli.py" in server.uploaded


def test_of_two_jobs_that_would_write_a_run_the_second_is_refused(server):
    server.jobs[-1].metadata[RUN_DIR] = "/shared/another"
    outcome = command(main, "submit", "--", "evaluate", "/shared/another")
    assert outcome.returncode == 1 and "job new is writing /shared/another" in outcome.stderr
    assert len(server.jobs) == 3


@pytest.mark.parametrize("milliseconds", [10**300, 10**18, -(10**15)])
def test_a_job_of_no_time_is_listed(milliseconds):
    assert _started(milliseconds) == "?"
    assert _started(None) == "1970-01-01 00:00:00"


@pytest.mark.parametrize("log", [None, 5, ["x"]])
def test_a_log_that_is_no_text_is_one_line(server, monkeypatch, log):
    monkeypatch.setattr(server, "get_job_logs", lambda name: log)
    outcome = command(main, "jobs", "logs", "new")
    assert outcome.returncode == 1 and "a log that is no text" in outcome.stderr
