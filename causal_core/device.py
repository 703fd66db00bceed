"""Everything that depends on the device, in one place."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def dtype_of(name: str) -> torch.dtype:
    """The torch type of a config value (`float32`, `bfloat16`)."""
    return _DTYPES[name]


def prepare_device(device: torch.device, threads: int | None, gpus: float = 1.0) -> None:
    """Sets this process up for one device.

    On CUDA the device becomes the current one, float32 matrix products may use TF32, and a worker
    with a fraction of a GPU gets that fraction of its memory: Ray shares out visibility only.

    Args:
        threads: CPU threads of this worker; None leaves torch's choice.
        gpus: What the worker was given; below 1 it shares its GPU.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        if 0 < gpus < 1:
            torch.cuda.set_per_process_memory_fraction(gpus, device)
    elif threads is not None:
        torch.set_num_threads(threads)


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


def peak_memory_bytes(device: torch.device) -> int:
    """Peak so far: allocated by the CUDA allocator, or the process's resident set on CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def at_least_float32(values: Tensor) -> Tensor:
    """Upcasts half types; float64 stays, so that tests can tell rounding from error."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
