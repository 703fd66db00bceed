"""The wait for workers: whether they can come at all, and its end where they do not.

Ray itself waits for ever and in silence for resources that no machine has. While no worker of a run
is up, a file in the run directory says so: the driver and Ray's controller put it there, the first
worker takes it away. Ray has no way to take back a start that is waited for; one that was given up
is marked in the run directory, and its workers, should they come, end at once.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.train import UserCallback

from causal_core.config import Config, run_directory
from causal_core.errors import RunFailedError, UserError
from ray_jobs.training.ray_session import cluster_address
from ray_jobs.training.ray_words import root_cause
from ray_jobs.training.resources import Ask, describe_nodes
from ray_jobs.training.worker_log import keep_log

log = logging.getLogger(__name__)

WAITING_FILE = ".waiting"
_GIVEN_UP = ".given-up-"
_AGAIN = "after a failure"  # in that file: workers were up before
_SAY_EVERY_SECONDS = 60.0


def refuse_impossible(config: Config, ask: Ask | None = None) -> None:
    """Refuses what the cluster that this process is connected to can never run.

    Args:
        ask: What is asked for; default: the workers of a training.

    Raises:
        UserError: not even the least number of workers fits on empty nodes, nor on those that an
            autoscaler may start.
    """
    import ray

    ask = ask or Ask.of(config)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if ask.fitting(nodes) >= ask.least:
        return
    most = _most_after_scaling()
    if config.ray.wait_for_nodes or all(
        most.get(name, 0.0) >= amount for name, amount in ask.totals().items()
    ):
        log.warning("%s, on %s: waiting for nodes to join", ask, describe_nodes(nodes))
        return
    has = "this machine" if cluster_address(config) is None else "the cluster"
    grows = f", and its autoscaler goes up to {_amounts(most)}" if most else ""
    raise UserError(
        f"{ask}: {has} has {describe_nodes(nodes)}{grows}, so {ask.fitting(nodes)} of "
        f"{ask.least} can ever start. Lower resources.workers, resources.cpus_per_worker or "
        "resources.gpus_per_worker, name another cluster in ray.address, or set "
        "ray.wait_for_nodes=true if nodes will join"
    )


def _amounts(resources: Mapping[str, float]) -> str:
    return " and ".join(f"{resources.get(name, 0.0):g} {name}" for name in ("CPU", "GPU"))


def _most_after_scaling() -> Mapping[str, float]:
    """What an autoscaler may bring a cluster to, by resource; empty where none has said so.

    Ray Train asks in the same way before it starts workers; Ray has no public call for it.
    """
    from ray._private.state import state

    try:
        return state.get_max_resources_from_cluster_config() or {}
    except Exception as error:  # noqa: BLE001 - not a public call: without an answer, none is known
        log.info("the autoscaler's limits are not known: %s", error)
        return {}


class WaitAgain(UserCallback):
    """Runs in Ray's controller: after a failure, workers are waited for again."""

    def __init__(self, config: Config) -> None:
        self._directory = run_directory(config)
        self._form = config.logging.format

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        keep_log(self._form, self._directory, "controller")
        for rank, error in worker_exceptions.items():
            log.warning("worker %d failed: %s", rank, root_cause(error))
        (self._directory / WAITING_FILE).write_text(_AGAIN)


class Wait:
    """The driver's view of the wait: says what it is for, and ends it."""

    def __init__(self, config: Config, directory: Path) -> None:
        self.start = f"{os.getpid()}-{secrets.token_hex(4)}"  # names this start
        self._directory = directory
        self._ask = Ask.of(config)
        self._limit = config.ray.wait_seconds
        self._file = directory / WAITING_FILE
        self._since: float | None = None
        self._said = 0.0

    def begin(self) -> None:
        """No worker of this run is up."""
        for mark in self._directory.glob(f"{_GIVEN_UP}*"):
            if not mark.name.startswith(f"{_GIVEN_UP}{os.getpid()}-"):
                mark.unlink(missing_ok=True)  # of a process that is gone, and its workers with it
        self._file.write_text("")

    def end(self) -> None:
        """Nothing is waited for any more."""
        self._file.unlink(missing_ok=True)

    def look(self, stop_asked: bool) -> None:
        """Called a few times per second.

        Raises:
            RunFailedError: asked to stop while no worker is up, or `ray.wait_seconds` are over.
        """
        if not self._file.exists():
            self._since = None
            return
        now = time.monotonic()
        if self._since is None:
            self._since = self._said = now
        waited = now - self._since
        if stop_asked or waited > self._limit:
            (self._directory / f"{_GIVEN_UP}{self.start}").touch()
        if stop_asked:
            raise RunFailedError(
                f"stopped as asked while waiting for {self._ask}; the same command starts again"
            )
        if waited > self._limit:
            raise RunFailedError(
                f"no workers after {waited:.0f} s (ray.wait_seconds={self._limit:g}): {self._ask} "
                f"asked for, {free_resources()}. Wait until others are done, or ask for less"
            )
        if now - self._said > _SAY_EVERY_SECONDS:
            self._said = now
            log.warning(
                "waiting for %s for %.0f s now; %s; gives up after %g s (ray.wait_seconds)",
                self._ask, waited, free_resources(), self._limit,
            )  # fmt: skip


def workers_are_up(directory: Path, start: str) -> None:
    """Ends the wait; called by the first worker of a start.

    Raises:
        RunFailedError: the start was given up in the meantime.
    """
    mark = directory / f"{_GIVEN_UP}{start}"
    if mark.exists():
        mark.unlink(missing_ok=True)
        raise RunFailedError("this start was given up while it waited for workers")
    waiting = directory / WAITING_FILE
    if waiting.exists() and waiting.read_text() == _AGAIN:
        log.warning("the workers were started again; they go on from the last checkpoint")
    waiting.unlink(missing_ok=True)


def free_resources() -> str:
    """What the cluster has free at this moment, in words."""
    import ray

    free, total = ray.available_resources(), ray.cluster_resources()
    return f"free in the cluster: {_amounts(free)} of {_amounts(total)}"
