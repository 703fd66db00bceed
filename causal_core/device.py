"""Everything that depends on the device, in one place."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from causal_core.errors import UserError
from causal_core.openmp import watch_neighbours

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def dtype_of(name: str) -> torch.dtype:
    """The torch type of a config value (`float32`, `bfloat16`)."""
    return _DTYPES[name]


def prepare_device(
    device: torch.device, threads: int | None, gpus: float = 1.0, deterministic: bool = False
) -> None:
    """Sets this process up for one device, before it is first used.

    On CUDA the device becomes the current one, and a worker with a fraction of a GPU gets that
    fraction of its memory: Ray shares out visibility only.

    Args:
        threads: CPU threads of this worker; None leaves torch's choice.
        gpus: What the worker was given; below 1 it shares its GPU.
        deterministic: Whether every operation is to add in the same order each time. torch refuses
            one that cannot, by name.
    """
    if deterministic != torch.are_deterministic_algorithms_enabled():  # it imports a compiler
        torch.use_deterministic_algorithms(deterministic)
    if device.type == "cuda":
        _set_environment(deterministic)
        torch.cuda.set_device(device)
        # No TF32: float32 is what head, pooling and loss are promised in, and a base that may
        # round more computes in bfloat16.
        torch.set_float32_matmul_precision("highest")
        if 0 < gpus < 1:
            torch.cuda.set_per_process_memory_fraction(gpus, device)
    else:
        if threads is not None:
            torch.set_num_threads(threads)
        share_cores()


def share_cores() -> None:
    """Lets torch's threads make way while other programs have their cores, from now on."""
    watch_neighbours(torch.get_num_threads(), available_cores())


# What torch and cuBLAS read when CUDA starts. Micro-batches have ever new lengths: segments that
# grow do not end as holes that the next one does not fit.
_ALLOCATOR, _SEGMENTS = "PYTORCH_ALLOC_CONF", "expandable_segments:True"
_ALLOCATOR_BEFORE = "PYTORCH_CUDA_ALLOC_CONF"  # its name before torch 2.9, still read
_WORKSPACE, _FIXED_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"


def _set_environment(deterministic: bool) -> None:
    """Sets what the user has not set."""
    if _ALLOCATOR_BEFORE not in os.environ:
        os.environ.setdefault(_ALLOCATOR, _SEGMENTS)
    if deterministic:
        os.environ.setdefault(_WORKSPACE, _FIXED_WORKSPACE)


_NOT_DETERMINISTIC = " does not have a deterministic implementation"


@contextlib.contextmanager
def varying_operations_refused() -> Iterator[None]:
    """Says what to do where torch refuses an operation in deterministic mode.

    Raises:
        UserError: names the operation.
    """
    try:
        yield
    except RuntimeError as error:
        operation, found, _ = str(error).partition(_NOT_DETERMINISTIC)
        if not found:
            raise
        raise UserError(
            f"train.deterministic=true: {operation} has no deterministic implementation on this "
            "device. Set train.deterministic=false: a resumed run then equals an uninterrupted one "
            "within rounding, not bit by bit"
        ) from error


def worker_device(gpus: float) -> torch.device:
    """The device of a worker that was given so many GPUs; it sees no others."""
    return torch.device("cuda", 0) if gpus > 0 else torch.device("cpu")


def distributed_backend(gpus: float) -> str:
    """NCCL where each worker has `gpus` of its own; gloo on CPU, and where workers share a GPU,
    which NCCL refuses."""
    return "nccl" if gpus >= 1 else "gloo"


def bnb_device_map(device: torch.device) -> dict[str, Any]:
    """Places a bitsandbytes model as a whole on one device while it loads."""
    return {"": device.index or 0 if device.type == "cuda" else "cpu"}


def available_cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_memory_bytes(device: torch.device) -> int:
    """Memory that one program can plan with: all of a GPU, what is available of the host's."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable:"))
        return int(available.split()[1]) * 1024
    except (OSError, StopIteration):  # not Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


# glibc's numbers for `mallopt`, and the variables by which a user sets the same.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_SET_BY_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_")
_MOST_ON_HEAP = 2**25  # bytes of one block: more, glibc always maps on its own
_MOST_KEPT = 2**30


@contextlib.contextmanager
def freed_memory_stays(device: torch.device) -> Iterator[None]:
    """Forwards on CPU free what the next one needs again: it stays with this process meanwhile.

    By itself glibc hands more than some megabytes at the heap's end back, and Linux clears each
    page anew: a seventh of the time of forwards over thousands of tokens. At most 1 GiB stays, and
    goes when the context ends.
    """
    libc = ctypes.CDLL(None) if os.name == "posix" else None
    ours = device.type == "cpu" and not any(name in os.environ for name in _SET_BY_USER)
    if not ours or not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_trim"):
        yield
        return
    assert libc is not None
    libc.mallopt(_MMAP_THRESHOLD, _MOST_ON_HEAP)
    libc.mallopt(_TRIM_THRESHOLD, _MOST_KEPT)
    try:
        yield
    finally:
        libc.mallopt(_TRIM_THRESHOLD, 2 * _MOST_ON_HEAP)  # to which glibc moves it by itself
        libc.malloc_trim(0)


def peak_memory_bytes(device: torch.device) -> int:
    """Peak so far: allocated by the CUDA allocator, or the process's resident set on CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def at_least_float32(values: Tensor) -> Tensor:
    """Upcasts half types; float64 stays, so that tests can tell rounding from error."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
