"""`causal jobs list|logs|stop` against a job server that knows one job; a real one: slow, in
test_real_cluster.py."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest
from ray.job_submission import JobStatus

from ray_jobs.cli import main
from ray_jobs.jobs import client as connection
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

    def stop_job(self, name: str) -> None:
        self.stopped.append(name)


@pytest.fixture
def server(monkeypatch):
    made = Server()
    monkeypatch.setattr(connection, "connect", lambda address: made)
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
