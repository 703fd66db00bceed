"""A run and an evaluation in a process beside this one: two models at once, each on half the cores.

Of two threads one waits whenever the other alone has work, and a training step of a small model is
full of such moments: two cores do more with one model each than both with one after the other.

The process gets its job as a line of JSON, answers by one, and ends when its input does: whoever
dies takes it along, and it leaves a checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from causal_core.config import Config
from causal_core.errors import RunFailedError, UserError
from causal_core.evaluation.rows import RowResult
from ray_jobs import child
from ray_jobs.training.ray_session import sharing_cores

Rows = dict[str, dict[str, list[RowResult]]]  # by model and test set

PROGRAMS = 2
_PATIENCE_SECONDS = 60  # for the checkpoint of a process that is asked to stop


class Beside:
    """A process that trains a config's run, and evaluates models by it.

    The run is to need no more memory than the one beside it, of which there is a plan.
    """

    def __init__(self, config: Config, checkpoints: Mapping[str, Path | None], log: Path) -> None:
        self._name, self._log = Path(config.run.dir).name, log
        with log.open("w", encoding="utf-8") as printed:
            self._process = child.started(__name__, printed=printed)
        job = {
            "config": config.model_dump(mode="json"),
            "checkpoints": {k: None if v is None else str(v) for k, v in checkpoints.items()},
        }
        child.tell(self._process, job)

    def rows(self) -> Rows:
        """What its evaluation found; waits for it.

        Raises:
            UserError, RunFailedError: as it raised them, or that it died.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        where = f"what it printed is in {self._log}"
        if not line:
            code = self._process.wait()
            raise RunFailedError(f"the process of the {self._name} died ({code}); {where}")
        answer = json.loads(line)
        if "raised" in answer:
            kind = UserError if answer["user"] else RunFailedError
            raise kind(f"the {self._name}: {answer['raised']}; {where}")
        return {
            model: {name: [RowResult(**row) for row in rows] for name, rows in sets.items()}
            for model, sets in answer["rows"].items()
        }

    def end(self) -> None:
        """Asks it to stop, which leaves a checkpoint, and waits for that."""
        self._process.terminate()
        try:
            self._process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        child.close_pipes(self._process)


@contextlib.contextmanager
def beside(config: Config, checkpoints: Mapping[str, Path | None], log: Path) -> Iterator[Beside]:
    """Such a process for a `with` block, in which this one takes its part of the cores, too.

    Args:
        checkpoints: What it evaluates after its training, by name; None is the base.
        log: What it prints.
    """
    process = Beside(config, checkpoints, log)
    try:
        with sharing_cores(PROGRAMS):
            yield process
    finally:
        process.end()


def main() -> None:
    """The process's side."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what is printed is no answer
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_stop_at_the_end_of_input, daemon=True).start()
    print(json.dumps(_answer(lambda: _rows(job))), file=answers, flush=True)


def _stop_at_the_end_of_input() -> None:
    while os.read(0, 4096):  # unlike `sys.stdin`, nothing that the interpreter waits for at its end
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _rows(job: Mapping[str, Any]) -> dict[str, Any]:
    from causal_core.config_file import parse_config
    from causal_core.evaluation.rows import to_records
    from ray_jobs.evaluate import evaluated_rows
    from ray_jobs.run import run_training
    from ray_jobs.training.process import worker_process

    config = parse_config(job["config"])
    checkpoints = {k: None if v is None else Path(v) for k, v in job["checkpoints"].items()}
    with sharing_cores(PROGRAMS), worker_process(config):
        # What needs more memory at the same time, the other one, was planned with its whole.
        run_training(config, Console(stderr=True), test=False, planned=True)
        found = evaluated_rows(config, checkpoints)
    return {
        model: {name: to_records(rows) for name, rows in sets.items()}
        for model, sets in found.items()
    }


def _answer(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return {"rows": work()}
    except Exception as error:  # noqa: BLE001 - whoever asked decides what it means
        traceback.print_exc()
        told = isinstance(error, UserError | RunFailedError)
        said = str(error) if told else traceback.format_exception_only(error)[-1].strip()
        return {"raised": said, "user": isinstance(error, UserError)}


if __name__ == "__main__":
    main()
