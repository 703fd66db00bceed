"""A run and evaluations in a process beside this one: two models at once, each on half the cores.

Of two threads one waits whenever the other alone has work, and a training step of a small model is
full of such moments: two cores do more with one model each than both with one after the other.

The process gets each job as a line of JSON, answers each by one, and ends when its input does:
whoever dies takes it along, and it leaves a checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from causal_core.config import Config
from causal_core.errors import RunFailedError, UserError
from ray_jobs import child
from ray_jobs.evaluate import Found, evaluated_rows
from ray_jobs.training.ray_session import sharing_cores

Checkpoints = Mapping[str, Path | None]  # by name; None is the base

_Jobs = queue.SimpleQueue[dict[str, Any] | None]  # None: there will be no more

PROGRAMS = 2
_PATIENCE_SECONDS = 60  # for the checkpoint of a process that is asked to stop


class Beside:
    """A process that trains a config's run, and evaluates models by it.

    The run is to need no more memory than the one beside it, of which there is a plan.
    """

    def __init__(
        self, config: Config, checkpoints: Checkpoints, log: Path, told: Callable[[str], None]
    ) -> None:
        self._config, self._told = config, told
        self._name, self._log = Path(config.run.dir).name, log
        with log.open("w", encoding="utf-8") as printed:
            self._process = child.started(__name__, printed=printed)
        self._asked, self._ended = 0, False
        self._answers: list[Found] = []
        self._failure: UserError | RunFailedError | None = None
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._ask(config, checkpoints, train=True)

    def evaluate(self, tests: Sequence[str], checkpoints: Checkpoints) -> None:
        """Gives it an evaluation to do next, on some test sets of its config."""
        config = on_tests(self._config, tests)
        self._ask(config, checkpoints, train=False)

    def is_free(self) -> bool:
        """Whether it has answered all that it was asked.

        Raises:
            UserError, RunFailedError: as `found`.
        """
        with self._changed:
            if self._failure is not None:
                raise self._failure
            return len(self._answers) == self._asked

    def found(self) -> list[Found]:
        """What its evaluations found, in their order; waits for them.

        Raises:
            UserError, RunFailedError: as it raised them, or that it died.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._failure or len(self._answers) == self._asked)
            if self._failure is not None:
                raise self._failure
            return list(self._answers)

    def _ask(self, config: Config, checkpoints: Checkpoints, train: bool) -> None:
        self._asked += 1
        job = {
            "config": config.model_dump(mode="json"),
            "checkpoints": {k: None if v is None else str(v) for k, v in checkpoints.items()},
            "train": train,
        }
        child.tell(self._process, job)

    def _read(self) -> None:
        """Takes its answers as they come; a failure is told when it happens."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer = json.loads(line)
            if "raised" in answer:
                kind = UserError if answer["user"] else RunFailedError
                self._fail(kind(f"the {self._name}: {answer['raised']}; {self._where()}"))
                return
            found = Found.from_plain(answer)
            with self._changed:
                self._answers.append(found)
                self._changed.notify_all()
        code = self._process.wait()
        self._fail(
            RunFailedError(f"the process of the {self._name} died ({code}); {self._where()}")
        )

    def _where(self) -> str:
        return f"what it printed is in {self._log}"

    def _fail(self, failure: UserError | RunFailedError) -> None:
        with self._changed:
            self._failure = failure
            self._changed.notify_all()
        if not self._ended:
            self._told(str(failure))

    def end(self) -> None:
        """Asks it to stop, which leaves a checkpoint, and waits for that."""
        self._ended = True
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        child.close_pipes(self._process)


@contextlib.contextmanager
def beside(
    config: Config,
    checkpoints: Checkpoints,
    log: Path,
    told: Callable[[str], None] = lambda _: None,
) -> Iterator[Beside]:
    """Such a process for a `with` block, in which this one takes its part of the cores, too.

    Args:
        checkpoints: What it evaluates after its training, on all test sets.
        log: What it prints.
        told: Called, from another thread, with why it failed, when it does.
    """
    process = Beside(config, checkpoints, log, told)
    try:
        with sharing_cores(PROGRAMS):
            yield process
    finally:
        process.end()


def on_tests(config: Config, tests: Sequence[str]) -> Config:
    """The config with some of its test sets."""
    some = config.model_copy(deep=True)
    some.data.test = {name: config.data.test[name] for name in tests}
    return some


def main() -> None:
    """The process's side."""
    from causal_core.config_file import parse_config
    from ray_jobs.training.process import worker_process

    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what is printed is no answer
    jobs: _Jobs = queue.SimpleQueue()
    threading.Thread(target=_read_jobs, args=(jobs,), daemon=True).start()
    if (job := jobs.get()) is None:
        return
    with sharing_cores(PROGRAMS), worker_process(parse_config(job["config"])):
        while job is not None:
            print(json.dumps(_answer(job)), file=answers, flush=True)
            job = jobs.get()


def _read_jobs(jobs: _Jobs) -> None:
    left = b""
    while read := os.read(0, 2**16):  # unlike `sys.stdin`, nothing that the interpreter waits for
        *lines, left = (left + read).split(b"\n")
        for line in lines:
            jobs.put(json.loads(line))
    jobs.put(None)
    os.kill(os.getpid(), signal.SIGTERM)  # of a training, which leaves a checkpoint


def _answer(job: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return _found(job).to_plain()
    except Exception as error:  # noqa: BLE001 - whoever asked decides what it means
        traceback.print_exc()
        told = isinstance(error, UserError | RunFailedError)
        said = str(error) if told else traceback.format_exception_only(error)[-1].strip()
        return {"raised": said, "user": isinstance(error, UserError)}


def _found(job: Mapping[str, Any]) -> Found:
    from causal_core.config_file import parse_config
    from ray_jobs.run import run_training

    config = parse_config(job["config"])
    checkpoints = {k: None if v is None else Path(v) for k, v in job["checkpoints"].items()}
    if job["train"]:
        # What needs more memory at the same time, the other one, was planned with its whole.
        run_training(config, Console(stderr=True), test=False, planned=True)
    return evaluated_rows(config, checkpoints)


if __name__ == "__main__":
    main()
