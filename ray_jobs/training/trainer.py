"""One training run: as a Ray Train `TorchTrainer` (Train V2), by one process beside this one, or in
this process."""

from __future__ import annotations

import contextlib
import functools
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from causal_core.checkpoints.store import checkpoint_location
from causal_core.config import Config, run_directory
from causal_core.errors import RunFailedError, StorageRefusedError, UserError
from causal_core.openmp import in_force
from causal_core.pretrained.loading import check_weights
from ray_jobs.training.process import STOP_FILE, WorkerFailedError, WorkerProcess, worker_process
from ray_jobs.training.ray_session import cluster_address, ray_session, worker_threads
from ray_jobs.training.ray_words import account_kept, failure_kept, root_cause
from ray_jobs.training.worker_log import WorkerLog

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
_LOOK_SECONDS = 0.25


def fit(
    config: Config, stop_at: int | None = None, callbacks: Sequence[Any] = ()
) -> dict[str, Any]:
    """Runs or resumes the training that `config` describes and returns its summary.

    SIGTERM ends the run at the next step boundary, with a checkpoint; so does `stop_at`, a number
    of optimizer steps. The summary then says `finished: False`.

    Args:
        callbacks: Ray Train `UserCallback`s, which see every report (a run on Ray only).

    Raises:
        UserError: something the user gave cannot work.
        RunFailedError: workers failed more often than `ray.max_failures`.
    """
    check_weights(config.model, config.data.cache_dir)  # before workers are asked for
    if config.resources.max_workers == 0:
        return _fit_in_process(config, stop_at)
    if not callbacks:
        with worker_process(config) as process:
            if process is not None:
                return _fit_alone(config, stop_at, process)
    with ray_session(config):
        return _fit_on_ray(config, stop_at, callbacks)


def _fit_in_process(config: Config, stop_at: int | None) -> dict[str, Any]:
    from causal_core.device import prepare_device, worker_device
    from causal_core.run.context import LocalContext
    from causal_core.run.loop import train

    device = worker_device(config.resources.gpus_per_worker)
    prepare_device(
        device,
        config.resources.threads,
        config.resources.gpus_per_worker,
        config.train.deterministic,
    )
    context = LocalContext(
        run_directory(config),
        device,
        keep_last=config.checkpoint.keep_last,
        storage=config.checkpoint.storage,
        stop_at=stop_at,
    )

    def ask_to_stop() -> None:
        context.stop = True

    with _on_sigterm(ask_to_stop):
        return train(config, context)


def _fit_alone(config: Config, stop_at: int | None, process: WorkerProcess) -> dict[str, Any]:
    directory = run_directory(config)
    stop_file = directory / STOP_FILE
    directory.mkdir(parents=True, exist_ok=True)
    stop_file.unlink(missing_ok=True)
    workers = WorkerLog(directory)
    job = {
        "config": config.model_dump(mode="json"),
        "directory": str(directory),
        "threads": worker_threads(config),
        "stop_at": stop_at,
    }
    try:
        with _on_sigterm(stop_file.touch):
            summary = process.run(
                "train",
                job,
                max_failures=config.ray.max_failures,
                retry_errors=True,
                look=workers.look,
            )
    except WorkerFailedError as error:
        raise RunFailedError(
            f"the training worker failed: {error}; {account_kept(directory, error.account)}"
        ) from error
    finally:
        stop_file.unlink(missing_ok=True)
    return _of_a_worker(summary)


def _of_a_worker(summary: Any) -> dict[str, Any]:
    """The summary that a worker returned; an error among its words is raised."""
    if not isinstance(summary, dict):
        raise RunFailedError("the training ended without a summary")
    if "user_error" in summary:
        raise UserError(summary["user_error"])
    if "run_failed" in summary:
        raise RunFailedError(summary["run_failed"])
    return summary


def _fit_on_ray(config: Config, stop_at: int | None, callbacks: Sequence[Any]) -> dict[str, Any]:
    from ray.exceptions import RayActorError
    from ray.train.v2.api.exceptions import TrainingFailedError

    from ray_jobs.training.waiting import Wait, WaitAgain, refuse_impossible

    directory = run_directory(config)
    stop_file = directory / STOP_FILE
    directory.mkdir(parents=True, exist_ok=True)
    stop_file.unlink(missing_ok=True)
    refuse_impossible(config)
    wait, workers = Wait(config, directory), WorkerLog(directory)
    wait.begin()
    try:
        trainer_of = functools.partial(
            _trainer, config, stop_at, wait.start, [WaitAgain(config), *callbacks]
        )
        fitting = _Fitting(trainer_of, config.ray.max_failures)
        with _on_sigterm(stop_file.touch), fitting:
            while not fitting.wait(_LOOK_SECONDS):
                wait.look(stop_file.exists())
                workers.look()
            result = fitting.result()
    except TrainingFailedError as error:
        cause = root_cause(error)
        refused = f"{StorageRefusedError.__module__}.{StorageRefusedError.__name__}: "
        if cause.startswith(refused):
            raise StorageRefusedError(cause.removeprefix(refused)) from error
        raise RunFailedError(
            f"the training workers failed: {cause}; {failure_kept(directory, error)}"
        ) from error
    except RayActorError as error:
        raise RunFailedError(
            "the training controller died; the same command continues from the last checkpoint "
            f"in {checkpoint_location(directory, config.checkpoint.storage)}; "
            f"{failure_kept(directory, error)}"
        ) from error
    finally:
        workers.look()
        stop_file.unlink(missing_ok=True)
        wait.end()
    return _of_a_worker(result.return_value)


def _trainer(config: Config, stop_at: int | None, start: str, callbacks: Sequence[Any]) -> Any:
    from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from causal_core.device import distributed_backend
    from ray_jobs.training.worker import train_worker

    directory, resources = run_directory(config), config.resources
    use_gpu = resources.gpus_per_worker > 0
    per_worker: dict[str, float] = {"CPU": resources.cpus_per_worker}
    if use_gpu:
        per_worker["GPU"] = resources.gpus_per_worker
    return TorchTrainer(
        train_worker,
        train_loop_config={
            "config": config.model_dump(mode="json"),
            "directory": str(directory),
            "location": checkpoint_location(directory, config.checkpoint.storage),
            "threads": worker_threads(config),
            "stop_at": stop_at,
            "start": start,
        },
        torch_config=TorchConfig(backend=distributed_backend(resources.gpus_per_worker)),
        scaling_config=ScalingConfig(
            num_workers=resources.workers,
            use_gpu=use_gpu,
            resources_per_worker=per_worker,
            accelerator_type=resources.accelerator_type,
        ),
        run_config=RunConfig(
            name=CHECKPOINTS,
            storage_path=config.checkpoint.storage or str(directory),
            failure_config=FailureConfig(max_failures=config.ray.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=config.checkpoint.keep_last),
            logging_config=LoggingConfig(log_level="WARNING"),
            callbacks=list(callbacks),
            worker_runtime_env=_worker_environment(config),
        ),
    )


def _worker_environment(config: Config) -> dict[str, Any] | None:
    """Ray imports torch before a worker reaches this project's code. On this machine workers
    inherit how threads wait, elsewhere they are told."""
    return None if cluster_address(config) is None else {"env_vars": in_force()}


class _Fitting:
    """Ray's `fit` in a thread of its own, a new one for a controller that died.

    On the main thread `fit` would take Ctrl-C for itself, and it blocks without an end while it
    waits for workers. Here the caller can leave; the thread ends with the connection to Ray.

    Ray restarts workers, but not their controller, which is an actor as well: a new one continues
    from the newest checkpoint, as often as `max_failures` allows (-1: any number).
    """

    def __init__(self, trainer_of: Callable[[], Any], max_failures: int) -> None:
        self._trainer_of = trainer_of
        self._max_failures = max_failures
        self._finished, self._left = threading.Event(), threading.Event()
        self._result: Any = None
        self._error: BaseException | None = None

    def __enter__(self) -> None:
        threading.Thread(target=self._run, name="trainer", daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self._left.set()

    def wait(self, seconds: float) -> bool:
        """Whether it has come to its end within some seconds."""
        return self._finished.wait(seconds)

    def result(self) -> Any:
        """What Ray's `fit` returned.

        Raises:
            RayActorError: the controller died more often than `max_failures` allows.
            TrainingFailedError: workers failed more often.
        """
        if self._error is not None:
            raise self._error
        return self._result

    def _run(self) -> None:
        try:
            self._result = self._fit()
        except BaseException as error:  # noqa: BLE001 - raised again by `result`
            self._error = error
        self._finished.set()

    def _fit(self) -> Any:
        from ray.exceptions import RayActorError

        from ray_jobs.training.ray_words import first_line

        failures = 0
        while True:
            try:
                return self._trainer_of().fit()
            except RayActorError as error:
                failures += 1
                if self._left.is_set() or 0 <= self._max_failures < failures:
                    raise
                log.warning(
                    "the training controller died (%s): a new one continues from the last "
                    "checkpoint (failure %d, ray.max_failures=%d)",
                    first_line(error), failures, self._max_failures,
                )  # fmt: skip


@contextlib.contextmanager
def _on_sigterm(action: Callable[[], object]) -> Iterator[None]:
    """Runs `action` on SIGTERM during the block (a preempted node, `kubectl delete`)."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread only
        return
    before = signal.signal(signal.SIGTERM, lambda *_: action())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
