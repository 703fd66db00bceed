"""Following a job: its log line by line, through lost connections, to its outcome."""

from __future__ import annotations

import asyncio
import functools
import re
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from causal_core.errors import RunFailedError
from causal_core.visible_text import visible
from ray_jobs.console.exit_codes import OK, RUN_FAILED, USAGE, USER_INPUT
from ray_jobs.jobs.client import explained

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

_SILENCE_SECONDS = 20.0  # after so long without a line, ask whether the server is still there
_RETRY_SECONDS = 2.0
PATIENCE_SECONDS = 600.0

_LONGEST_LINE = 2**16  # characters; a longer one is written in pieces
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class LogLines:
    """Writes a stream of chunks as whole, harmless lines; a repeated start is not shown again."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._rest = ""
        self._shown = 0  # characters of the log that were taken
        self._position = 0  # of the stream that is read now

    def restart(self) -> None:
        """The next chunk is the start of the log again."""
        self._position = 0

    def take(self, chunk: str) -> None:
        new = chunk[max(0, self._shown - self._position) :]
        self._position += len(chunk)
        self._shown = max(self._shown, self._position)
        *whole, self._rest = (self._rest + new).split("\n")
        for line in whole:
            self._write(printable(line))
        while len(self._rest) > _LONGEST_LINE:
            self._write(printable(self._rest[:_LONGEST_LINE]))
            self._rest = self._rest[_LONGEST_LINE:]

    def finish(self) -> None:
        """Writes what came without a line end."""
        if self._rest:
            self._write(printable(self._rest))
            self._rest = ""


def printable(line: str) -> str:
    """A log line without colours; control characters, which could drive a terminal, are escaped."""
    return visible(_COLOURS.sub("", line))


def follow(
    client: JobSubmissionClient,
    job: str,
    lines: LogLines,
    patience_seconds: float = PATIENCE_SECONDS,
) -> JobDetails:
    """Writes a job's log as it grows and returns the job's details once it has ended.

    Called again with the same `lines`, it continues where it was interrupted. A lost connection is
    tried again for `patience_seconds`.

    Raises:
        RunFailedError: no connection for so long, or the cluster no longer knows the job.
    """
    import aiohttp
    import requests

    lost = (RuntimeError, OSError, requests.exceptions.RequestException, aiohttp.ClientError)
    lost_since: float | None = None
    while True:
        try:
            details = client.get_job_info(job)
            if lost_since is not None:
                _note("connected again")
                lost_since = None
            asyncio.run(_tail(client, job, lines))
            details = client.get_job_info(job)
            if details.status.is_terminal():
                lines.finish()
                return details
        except lost as error:
            if "status code 404" in str(error):
                raise RunFailedError(
                    f"the cluster no longer knows job {job} (was its head restarted?). Submit the "
                    "same command again: the run continues from its last checkpoint"
                ) from error
            now = time.monotonic()
            if lost_since is None:
                lost_since = now
                _note("connection lost, trying again; the job is not affected")
            if now - lost_since > patience_seconds:
                raise RunFailedError(
                    f"no connection for {patience_seconds:.0f} s. The job goes on without this "
                    f"command; to follow it again: causal jobs logs {job} --follow"
                ) from error
        time.sleep(_RETRY_SECONDS)


async def _tail(client: JobSubmissionClient, job: str, lines: LogLines) -> None:
    lines.restart()
    stream = client.tail_job_logs(job)
    while True:
        chunk = asyncio.ensure_future(anext(stream, None))
        while not (await asyncio.wait({chunk}, timeout=_SILENCE_SECONDS))[0]:
            # A connection that died without a word looks like a quiet job: this raises there.
            await asyncio.to_thread(client.get_job_info, job)
        text = chunk.result()
        if text is None:
            return
        lines.take(text)


def exit_code(details: JobDetails) -> int:
    """The exit code of a job's own command; 3 where Ray ended it or it never started."""
    from ray.job_submission import JobStatus

    if details.status == JobStatus.SUCCEEDED:
        return OK
    code = details.driver_exit_code
    return code if code in (USER_INPUT, USAGE, RUN_FAILED) else RUN_FAILED


def _note(text: str) -> None:
    print(f"[{text}]", file=sys.stderr, flush=True)


RUN_DIR = "run_dir"  # metadata of a job: which run directory it writes


def follow_to_the_end(client: JobSubmissionClient, identity: str) -> int:
    """Follows a job and returns its exit code; Ctrl-C asks whether to detach or to stop it."""
    lines = LogLines(functools.partial(print, flush=True))
    while True:
        try:
            details = follow(client, identity, lines)
        except KeyboardInterrupt:
            answer = _ask_on_interrupt()
            if answer == "detach":
                _say("detached", f"the job goes on; causal jobs logs {identity} --follow")
                return 0
            if answer == "stop":
                _say("stopping", "the run saves a checkpoint at the next step boundary")
                with explained(client.get_address()):
                    client.stop_job(identity)
            continue
        code = exit_code(details)
        _say("outcome", f"{details.status.value}, exit code {code}")
        if code and details.driver_exit_code is None and details.message:
            _say("reason", "\n".join(map(printable, details.message.strip().splitlines())))
        return code


def _ask_on_interrupt() -> str:
    """`detach`, `stop` or `go on`."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return "detach"
    answers = {"d": "detach", "s": "stop", "c": "go on"}
    while True:
        try:
            print("\n[d]etach and let the job run, [s]top the job, [c]ontinue? ", end="",
                  file=sys.stderr, flush=True)  # fmt: skip
            answer = sys.stdin.readline()
        except KeyboardInterrupt:
            return "detach"
        if not answer:  # the terminal is gone
            return "detach"
        if (choice := answers.get(answer.strip().lower()[:1])) is not None:
            return choice


def _say(what: str, text: str) -> None:
    print(f"{what:<9} {text}", flush=True)
