"""`causal doctor`: what works on this machine, and what to do about what does not.

Each check is a function that returns `Check`s; nothing is changed but probe files, which are
removed again.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from causal_core.config import Config
from causal_core.device import available_cores
from causal_core.errors import UserError
from causal_core.files import cache_root
from ray_jobs.console.plain import plain
from ray_jobs.doctor.check import Check, Status
from ray_jobs.training.ray_session import no_gpu_here, no_room_here

GB = 10**9
_FEW_DISK, _NO_DISK = 10 * GB, 1 * GB
_FEW_MEMORY = 4 * GB
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where Ray keeps its object store, 200 MB here
_FEW_SHARED_MEMORY = 2**28
_RAY_PORTS = {"Ray head (GCS)": 6379, "Ray dashboard and jobs": 8265, "Ray client": 10001}


def diagnose(
    config: Config, engines: bool = True, before: Callable[[str], None] = lambda group: None
) -> list[Check]:
    """Runs all checks.

    Args:
        config: Whose directories, storage and cluster are looked at.
        engines: Run the two-step micro jobs of the engines as well (about half a minute).
        before: Called with the name of each group of checks before it runs.
    """
    from ray_jobs.doctor.exercises import engine_checks

    groups: dict[str, Callable[[Config], Iterator[Check]]] = {
        "versions": _versions,
        "machine": _machine,
        "disk": _disk,
        "storage": _storage,
        "ports": _ports,
    }
    if engines:
        groups["engines"] = lambda _: engine_checks()
    checks = []
    for group, run in groups.items():
        before(group)
        checks += list(run(config))
    return checks


def report(checks: list[Check]) -> dict[str, Any]:
    """The checks for programs to read."""
    return {"ok": not _failed(checks), "checks": [asdict(check) for check in checks]}


def raise_for_failed(checks: list[Check]) -> None:
    """`UserError` when a check failed."""
    if failed := _failed(checks):
        names = ", ".join(f"{check.group}/{check.name}" for check in failed)
        raise UserError(f"{len(failed)} of {len(checks)} checks failed: {names}")


def show_checks(console: Any, checks: list[Check]) -> None:
    """Prints the checks as a table, with the advice below what it is about."""
    from rich.table import Table

    colours = {"ok": "green", "warning": "yellow", "failed": "red"}
    table = Table(box=None, show_header=False, pad_edge=False)
    group = ""
    for check in checks:
        if check.group != group:
            group = check.group
            table.add_row(plain(group, "bold"))
        status = plain(check.status, colours[check.status])
        table.add_row(plain(f"  {check.name}"), status, plain(check.found, lines=True))
        if check.advice:
            table.add_row("", "", plain(check.advice, "italic", lines=True))
    console.print(table)


def _failed(checks: list[Check]) -> list[Check]:
    return [check for check in checks if check.status == "failed"]


def _versions(_: Config) -> Iterator[Check]:
    from packaging.requirements import Requirement

    yield Check("versions", "python", "ok", f"{platform.python_version()} ({sys.executable})")
    for line in importlib.metadata.requires("causal-ray") or ():
        requirement = Requirement(line)
        if requirement.marker is not None:  # of an extra
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield Check(
                "versions",
                requirement.name,
                "failed",
                "not installed",
                f"pip install -c constraints.txt '{requirement.name}{requirement.specifier}'",
            )
            continue
        if requirement.specifier.contains(version, prereleases=True):
            yield Check("versions", requirement.name, "ok", version)
        else:
            yield Check(
                "versions",
                requirement.name,
                "failed",
                f"{version}, needs {requirement.specifier}",
                f"pip install -c constraints.txt '{requirement.name}{requirement.specifier}'",
            )


def _machine(config: Config) -> Iterator[Check]:
    yield Check("machine", "system", "ok", f"{platform.system()} {platform.machine()}")
    yield Check("machine", "CPU cores", "ok", str(available_cores()))
    total, available = _memory()
    advice = no_room_here(config) or (
        "close other programs, or lower train.micro_batch_tokens" if available < _FEW_MEMORY else ""
    )
    yield Check(
        "machine",
        "memory",
        "warning" if advice else "ok",
        f"{available / GB:.1f} GB available of {total / GB:.1f} GB",
        advice,
    )
    if _SHARED_MEMORY.is_dir():
        size = shutil.disk_usage(_SHARED_MEMORY).total
        enough = size >= _FEW_SHARED_MEMORY
        yield Check(
            "machine",
            str(_SHARED_MEMORY),
            "ok" if enough else "warning",
            f"{size / GB:.1f} GB",
            "" if enough else "give the container more (docker run --shm-size=1g)",
        )
    yield from _gpus(config)


def _gpus(config: Config) -> Iterator[Check]:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index in range(count):
        properties = torch.cuda.get_device_properties(index)
        free = torch.cuda.mem_get_info(index)[0]
        yield Check(
            "machine",
            f"GPU {index}",
            "ok",
            f"{properties.name}, {free / GB:.1f} GB free of {properties.total_memory / GB:.1f} GB, "
            f"compute {properties.major}.{properties.minor}, CUDA {torch.version.cuda}, "
            f"bfloat16 {'yes' if torch.cuda.is_bf16_supported() else 'no: use dtype=float32'}",
        )
    if not count and shutil.which("nvidia-smi"):
        yield Check(
            "machine",
            "GPU",
            "failed",
            f"this machine has an NVIDIA driver, but torch {torch.__version__} sees no GPU",
            "install the CUDA build of torch, or look at nvidia-smi and CUDA_VISIBLE_DEVICES",
        )
        return
    missing = no_gpu_here(config)
    if missing or not count:
        found = f"{count or 'none'} here, which is less than this config asks for"
        yield Check(
            "machine",
            "GPUs" if count else "GPU",
            "warning" if missing else "ok",
            found if missing else "none: runs on CPU",
            missing or "",
        )


def _memory() -> tuple[int, int]:
    """Total and available bytes, within the limit of a container."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = page * os.sysconf("SC_PHYS_PAGES")
    available = page * os.sysconf("SC_AVPHYS_PAGES")
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
    limit = Path("/sys/fs/cgroup/memory.max")
    used = Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
        available = min(available, total - int(used.read_text()))
    return total, available


def _disk(config: Config) -> Iterator[Check]:
    places = {
        "run directory": Path(config.run.dir).expanduser().resolve(),
        "cache": cache_root(config.data.cache_dir),
        "temporary files": Path(tempfile.gettempdir()),
    }
    for name, place in places.items():
        free = shutil.disk_usage(_existing(place)).free
        status: Status = "ok" if free >= _FEW_DISK else "warning" if free >= _NO_DISK else "failed"
        yield Check(
            "disk",
            name,
            status,
            f"{free / GB:.1f} GB free at {place}",
            "" if status == "ok" else "free some space, or choose run.dir, data.cache_dir, TMPDIR",
        )


def _existing(path: Path) -> Path:
    """The nearest directory above that exists."""
    return next(p for p in (path, *path.parents) if p.is_dir())


def _storage(config: Config) -> Iterator[Check]:
    """Whether checkpoints can be written where they shall go, and seen from every node."""
    from pyarrow import fs

    location = config.checkpoint.storage or str(
        _existing(Path(config.run.dir).expanduser().resolve())
    )
    probe = f".causal-doctor-{uuid.uuid4().hex}"
    try:
        if "://" in location:
            filesystem, root = fs.FileSystem.from_uri(location)
        else:
            filesystem, root = fs.LocalFileSystem(), location
        filesystem.create_dir(root, recursive=True)
        with filesystem.open_output_stream(f"{root}/{probe}") as stream:
            stream.write(b"causal")
        try:
            with filesystem.open_input_stream(f"{root}/{probe}") as stream:
                whole = stream.read() == b"causal"
            yield Check(
                "storage",
                "write and read",
                "ok" if whole else "failed",
                location,
                "" if whole else "what was written came back altered: do not keep checkpoints here",
            )
            if "://" not in location and (config.ray.address or os.environ.get("RAY_ADDRESS")):
                yield from _seen_from_all_nodes(config, Path(root) / probe)
        finally:
            filesystem.delete_file(f"{root}/{probe}")
    except (OSError, ValueError) as error:
        yield Check(
            "storage",
            "write and read",
            "failed",
            f"{location}: {error}",
            "choose another run.dir or checkpoint.storage, or mend permissions and credentials",
        )


def _seen_from_all_nodes(config: Config, probe: Path) -> Iterator[Check]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from ray_jobs.training.ray_session import ray_session

    with ray_session(config):
        nodes = [node for node in ray.nodes() if node["Alive"]]
        exists = ray.remote(num_cpus=0)(os.path.exists)
        answers = {
            node["NodeManagerAddress"]: exists.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(str(probe))
            for node in nodes
        }
        for address, answer in answers.items():
            seen = ray.get(answer, timeout=60)
            yield Check(
                "storage",
                f"seen from node {address}",
                "ok" if seen else "failed",
                str(probe.parent),
                ""
                if seen
                else "mount the same storage on every node, or set checkpoint.storage "
                "to an object store (s3://, gs://)",
            )


def _ports(_: Config) -> Iterator[Check]:
    for name, port in _RAY_PORTS.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                free = True
            except OSError:
                free = False
        yield Check(
            "ports",
            name,
            "ok" if free else "warning",
            f"{port} {'free' if free else 'in use'}",
            ""
            if free
            else "something listens there, perhaps a Ray head (then set RAY_ADDRESS); a run on "
            "this machine alone takes free ports and does not mind",
        )
