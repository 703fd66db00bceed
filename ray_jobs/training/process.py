"""A run's only worker as a process beside the driver, without Ray.

One worker on this machine needs no cluster: Ray would start a dozen processes and take half of the
seconds before the first step. What a user has of it is here as well: a worker that dies is started
again and goes on from the newest checkpoint, as often as `ray.max_failures` allows; a driver that
dies takes its worker along; and a worker that has ended one job is ready for the next.

Jobs go to the process as lines of JSON, and answers come back as such (`worker_process.py`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from causal_core import errors
from causal_core.config import Config
from causal_core.errors import RunFailedError
from ray_jobs import child
from ray_jobs.training.ray_session import cluster_address

log = logging.getLogger(__name__)

# A driver that is asked to stop puts this file into the run directory; see `trainer.fit`.
STOP_FILE = ".stop"

MODULE = "ray_jobs.training.worker_process"
QUANTIZED = "--quantized"  # an option of it
LOOK_SECONDS = 0.25
_KEPT_BYTES = 20_000  # of what a process that died had printed last


def runs_alone(config: Config) -> bool:
    """Whether a run's only worker is a process of this machine, which needs no Ray."""
    resources = config.resources
    return (
        resources.workers == 1
        and resources.gpus_per_worker <= 1
        and resources.accelerator_type is None
        and config.engine in ("auto", "plain", "ddp")  # ddp of one worker is plain
        and cluster_address(config) is None
        and not _connected_to_ray()
    )


def _connected_to_ray() -> bool:
    """Whether whoever calls has connected to Ray already, and so wants the work to be there."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


_running: WorkerProcess | None = None


@contextlib.contextmanager
def worker_process(config: Config) -> Iterator[WorkerProcess | None]:
    """The worker's process for a `with` block; None where the run has none (see `runs_alone`).

    Nested use keeps the outer one, so that its start is paid once. It imports what work needs while
    the driver reads the data.
    """
    global _running
    if not runs_alone(config):
        yield None
    elif _running is not None:
        yield _running
    else:
        _running = WorkerProcess(quantized=config.model.quantization != "none")
        try:
            yield _running
        finally:
            _running.end()
            _running = None


class WorkerProcess:
    """A process that does one job after the other."""

    def __init__(self, quantized: bool = False) -> None:
        self._options = [QUANTIZED] if quantized else []
        self._start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def run(
        self,
        name: str,
        job: Mapping[str, Any],
        *,
        max_failures: int,
        retry_errors: bool,
        look: Callable[[], None],
    ) -> Any:
        """What a job (`worker_process.JOBS`) returns.

        Args:
            max_failures: How often the process may fail and be started again; -1: any number.
            retry_errors: Whether an error of the job is such a failure, too, or ends it at once.
            look: Called a few times per second.

        Raises:
            UserError, RunFailedError: as the job raised them.
            WorkerFailedError: it failed more often.
        """
        failures = 0
        while True:
            try:
                return self._answer(name, job, look)
            except _Failed as failed:
                failures += 1
                final = failed.raised is not None and not retry_errors
                if final or 0 <= max_failures < failures:
                    if failed.said is not None:
                        raise failed.said from failed
                    raise WorkerFailedError(failed.why, failed.account) from None
                log.warning(
                    "the worker failed (%s): it is started again and goes on from the last "
                    "checkpoint (failure %d, ray.max_failures=%d)",
                    failed.why, failures, max_failures,
                )  # fmt: skip
                self.end()
                self._start()

    def end(self) -> None:
        """Ends the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        child.close_pipes(self._process)
        self._printed.close()

    def _start(self) -> None:
        self._answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process
        self._process = child.started(MODULE, *self._options, printed=self._printed)
        self._reader = threading.Thread(
            target=self._listen, args=(self._process.stdout, self._answers), daemon=True
        )
        self._reader.start()

    @staticmethod
    def _listen(pipe: Any, answers: queue.SimpleQueue[str | None]) -> None:
        for line in pipe:
            answers.put(line)
        answers.put(None)

    def _answer(self, name: str, job: Mapping[str, Any], look: Callable[[], None]) -> Any:
        child.tell(self._process, [name, job])
        line = None
        while True:
            try:
                line = self._answers.get(timeout=LOOK_SECONDS)
                break
            except queue.Empty:
                look()
        look()
        if line is None or not line.endswith("\n"):
            raise self._died()
        answer = json.loads(line)
        if "result" in answer:
            return answer["result"]
        raise _Failed(answer["why"], answer["account"], answer["raised"], answer["message"])

    def _died(self) -> _Failed:
        code = self._process.wait()
        why = f"it ended with exit code {code}"
        if code < 0:
            why = f"it was killed by {signal.Signals(-code).name}"
            if -code == signal.SIGKILL:
                why += ", as the system does where memory runs out"
        self._printed.seek(max(0, self._printed.seek(0, os.SEEK_END) - _KEPT_BYTES))
        printed = self._printed.read().decode("utf-8", errors="replace")
        return _Failed(why, f"the worker's process: {why}; it had printed last:\n{printed}")


class WorkerFailedError(RunFailedError):
    """A worker's process failed for the last time.

    Args:
        why: In words.
        account: Its traceback, or what it printed.
    """

    def __init__(self, why: str, account: str) -> None:
        super().__init__(why)
        self.account = account


class _Failed(Exception):
    """One failure of the process."""

    def __init__(
        self, why: str, account: str, raised: str | None = None, message: str = ""
    ) -> None:
        super().__init__(account)
        self.why, self.account, self.raised = why, account, raised
        kind = getattr(errors, raised or "", None)
        self.said: Exception | None = kind(message) if kind is not None else None
