"""Following a job: its log in whole lines through lost connections, Ctrl-C, its exit code."""

from __future__ import annotations

import asyncio
import io
import os
import signal
from dataclasses import dataclass, field

import pytest

from causal_core.errors import RunFailedError
from ray_jobs.jobs import follow as following
from ray_jobs.jobs.follow import LogLines, exit_code, follow, follow_to_the_end, printable


@dataclass
class Details:
    """The part of Ray's JobDetails that is looked at."""

    status: object
    driver_exit_code: int | None = None
    message: str = ""


@dataclass
class Server:
    """A job server that loses connections: each script is one connection's chunks and end."""

    connections: list[tuple[list[str], BaseException | None]]
    outcome: Details
    taken: int = 0
    errors: list[Exception] = field(default_factory=list)  # of the next status requests

    def get_job_info(self, job: str) -> Details:
        from ray.job_submission import JobStatus

        if self.errors:
            raise self.errors.pop(0)
        over = self.taken == len(self.connections)
        return self.outcome if over else Details(JobStatus.RUNNING)

    async def tail_job_logs(self, job: str):
        chunks, error = self.connections[self.taken]
        self.taken += 1
        for chunk in chunks:
            yield chunk
        if isinstance(error, KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(10)
        if error is not None:
            raise error


@pytest.fixture
def ctrl_c():
    """Ctrl-C interrupts, also where a shell started the tests in the background and ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(following, "_RETRY_SECONDS", 0.0)


def succeeded() -> Details:
    from ray.job_submission import JobStatus

    return Details(JobStatus.SUCCEEDED, 0)


def test_a_lost_connection_continues_where_it_stopped(at_once, capsys):
    log = ["one\ntw", "o\nthree\n", "four\nlast"]
    server = Server(
        connections=[
            (log[:1], ConnectionResetError()),
            (log[:2], RuntimeError("WebSocket connection closed unexpectedly")),
            ([], None),  # closed before the job had ended
            (["one\ntwo\nthree\nfo", "ur\nlast"], None),  # cut elsewhere this time
        ],
        outcome=succeeded(),
        errors=[],
    )
    lines: list[str] = []
    assert follow(server, "job", LogLines(lines.append)) is server.outcome
    assert lines == ["one", "two", "three", "four", "last"]
    said = capsys.readouterr().err
    assert "connection lost" in said and "connected again" in said


def test_patience_ends_and_says_how_to_go_on(at_once):
    server = Server([([], None)], succeeded(), errors=[ConnectionError()] * 1000)
    with pytest.raises(RunFailedError, match="causal jobs logs job --follow"):
        follow(server, "job", LogLines(print), patience_seconds=0.01)


def test_a_cluster_that_forgot_the_job_is_the_end(at_once):
    server = Server([], succeeded(), errors=[RuntimeError("Request failed with status code 404")])
    with pytest.raises(RunFailedError, match="no longer knows job"):
        follow(server, "job", LogLines(print))


class Terminal(io.StringIO):
    """Typed answers."""

    def isatty(self) -> bool:
        return True


@dataclass
class Interrupted(Server):
    """A job that is followed until Ctrl-C, and goes on or stops."""

    stopped: list[str] = field(default_factory=list)

    def get_address(self) -> str:
        return "http://127.0.0.1:8265"

    def stop_job(self, job: str) -> None:
        from ray.job_submission import JobStatus

        self.stopped.append(job)
        self.outcome = Details(JobStatus.STOPPED)


@pytest.mark.parametrize(
    ("typed", "code", "stopped"),
    [("d\n", 0, []), ("what?\ns\n", 3, ["job"]), ("c\n", 0, []), ("", 0, []), (None, 0, [])],
)
def test_ctrl_c_asks_whether_to_detach_or_stop(
    at_once, ctrl_c, monkeypatch, capsys, typed, code, stopped
):
    server = Interrupted([(["one\n"], KeyboardInterrupt()), (["one\ntwo\n"], None)], succeeded())
    monkeypatch.setattr("sys.stdin", io.StringIO() if typed is None else Terminal(typed))
    monkeypatch.setattr("sys.stderr", Terminal())
    assert follow_to_the_end(server, "job") == code
    assert server.stopped == stopped
    said = capsys.readouterr().out
    assert said.count("one") == 1
    assert ("two" in said) == (typed in ("c\n", "what?\ns\n"))
    assert ("the job goes on" in said) == (typed in ("d\n", "", None))


def test_log_lines_cannot_drive_the_terminal():
    lines: list[str] = []
    log = LogLines(lines.append)
    log.take("\x1b[36m(worker)\x1b[0m \x1b]0;title\x07 \x1b[2J ok\n")
    assert lines == ["(worker) \\x1b]0;title\\x07 \\x1b[2J ok"]
    assert printable("plain é") == "plain é"


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 1, 1),
        ("FAILED", 2, 2),
        ("FAILED", 3, 3),
        ("FAILED", -9, 3),
        ("FAILED", 137, 3),
        ("FAILED", None, 3),
        ("STOPPED", None, 3),
    ],
)
def test_the_exit_code_is_the_jobs_own(status, code, expected):
    from ray.job_submission import JobStatus

    assert exit_code(Details(JobStatus(status), code)) == expected
