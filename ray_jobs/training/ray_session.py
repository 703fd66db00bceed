"""How this program reaches Ray: an existing cluster, or one of its own on this machine."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from collections.abc import Iterator

from causal_core.config import Config, run_directory
from causal_core.errors import RunFailedError
from ray_jobs.stopping import sigterm_as_it_is

# Settings that Ray reads when it is imported or started. Each is a default: a value that the
# user has set in the environment wins.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    # The controller polls its workers this often; 2 s by default, which every report waits for.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
    # Workers run 15 levels nicer than everything else by default: any process of the machine then
    # stalls one of their threads, and all others wait for that one.
    "RAY_worker_niceness": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
    # How often Train asks whether a node is being drained; 5 s by default, of a grace of 30.
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    # Otherwise every line that a worker prints stands twice in Ray's files.
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
}
_WORKER_BYTES = 256 * 2**20  # of a worker that has imported torch and Ray: at least
_OBJECT_STORE_BYTES = 200 * 2**20  # nothing large travels through it


@contextlib.contextmanager
def ray_session(config: Config) -> Iterator[None]:
    """Connects to Ray for a `with` block.

    A cluster is used where the config or RAY_ADDRESS names one (a submitted job is given one by
    Ray); otherwise Ray starts on this machine behind a token of its own, with its dashboard on
    loopback, and stops at the end. Nested use keeps the outer connection. Nothing that Ray or a
    process of Ray prints reaches the terminal: see `ray_words` and `worker_log`.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    address = cluster_address(config)
    if not address and "ray" not in sys.modules:
        # Whoever reaches Ray runs code here, and Ray listens on more than the dashboard's port. It
        # reads these when it is imported; a program that imported it before has Ray's own default,
        # a token file.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    if not address:
        # Nobody drains the only machine; its watcher is one more process.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    import ray

    from ray_jobs.training.ray_words import ray_says_into

    with ray_says_into(run_directory(config)):
        if ray.is_initialized():
            yield
            return
        with sigterm_as_it_is():
            _connect(config, address)
        try:
            yield
        finally:
            ray.shutdown()


def _connect(config: Config, address: str | None) -> None:
    import ray

    from causal_core.device import available_cores
    from ray_jobs.training.ray_words import FORM

    said = {"log_to_driver": False, "logging_level": "WARNING", "logging_format": FORM}
    if address:
        ray.init(address=address, **said)
        return
    try:
        ray.init(
            address="local",
            num_cpus=max(available_cores(), _cpus_needed(config)),
            object_store_memory=_OBJECT_STORE_BYTES,
            # Ray Train's cleaner of placement groups asks the dashboard for the controller's state.
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            **said,
        )
    except Exception as error:
        # Ray raises `Exception` itself where its processes are not up within its 30 s.
        if "timed out during startup" not in str(error):
            raise
        raise RunFailedError(
            "Ray's own processes were not up on this machine within 30 s, which Ray does not wait "
            "beyond: the machine is busy, or short of memory. Run the same command again when it "
            "is not; resources.workers=1 needs no Ray"
        ) from error


def cluster_address(config: Config) -> str | None:
    """The cluster that a run goes to; None: Ray is started on this machine."""
    return config.ray.address or os.environ.get("RAY_ADDRESS") or None


def refused_here(config: Config) -> str | None:
    """Why this machine alone cannot run what a config asks for; None where it can, or need not."""
    return no_gpu_here(config) or no_room_here(config)


def no_gpu_here(config: Config) -> str | None:
    """`refused_here`, of GPUs."""
    each, workers = config.resources.gpus_per_worker, _least_workers(config)
    if each == 0 or cluster_address(config) is not None:
        return None
    import torch

    wanted, found = workers * each, torch.cuda.device_count()
    if found >= wanted:
        return None
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (
        f"no GPU here for this: resources.gpus_per_worker={each:g} on {workers} worker(s) "
        f"asks for {wanted:g}, torch {torch.__version__} sees {found}"
        + (f" (CUDA_VISIBLE_DEVICES={hidden!r})" if hidden is not None else "")
        + ". Set resources.gpus_per_worker=0 to run on CPU, name a cluster in ray.address, or "
        "submit it to one: causal submit -- train ..."
    )


def no_room_here(config: Config) -> str | None:
    """`refused_here`, of memory for the processes of the workers."""
    workers = _least_workers(config)
    if workers == 1 or cluster_address(config) is not None:
        return None
    import torch

    from causal_core.device import device_memory_bytes

    room = device_memory_bytes(torch.device("cpu"))
    if workers * _WORKER_BYTES <= room:
        return None
    return (
        f"no room here for resources.workers={workers}: each is a process that takes "
        f"{_WORKER_BYTES / 2**20:.0f} MiB before it holds a model, and {room / 2**30:.1f} GiB are "
        "free. Ask for fewer (more than the machine has cores or GPUs gain nothing), or name a "
        "cluster in ray.address"
    )


def _least_workers(config: Config) -> int:
    asked = config.resources.workers
    return max(1, asked if isinstance(asked, int) else asked[0])


_programs = 1  # that have this machine's cores in equal parts


@contextlib.contextmanager
def sharing_cores(programs: int) -> Iterator[None]:
    """Gives the workers of this process one part of so many of the cores, for a `with` block."""
    global _programs
    before, _programs = _programs, programs
    try:
        yield
    finally:
        _programs = before


def worker_threads(config: Config) -> int:
    """CPU threads of each worker: the config's, or an even part of this machine's cores."""
    from causal_core.device import available_cores

    if config.resources.threads is not None:
        return config.resources.threads
    return max(1, available_cores() // (max(1, config.resources.max_workers) * _programs))


def _cpus_needed(config: Config) -> int:
    return int(config.resources.max_workers * config.resources.cpus_per_worker) + 1
