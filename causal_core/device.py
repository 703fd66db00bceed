"""Everything that depends on the device, in one place."""

from __future__ import annotations

import os
from typing import Any

import torch

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def dtype_of(name: str) -> torch.dtype:
    """The torch type of a config value (`float32`, `bfloat16`)."""
    return _DTYPES[name]


def prepare_device(device: torch.device, threads: int | None) -> None:
    """Thread count on CPU; TF32 matrix products and the current device on CUDA."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    elif threads is not None:
        torch.set_num_threads(threads)


def bnb_device_map(device: torch.device) -> dict[str, Any]:
    """Places a bitsandbytes model as a whole on one device while it loads."""
    return {"": device.index or 0 if device.type == "cuda" else "cpu"}


def available_cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory_bytes(device: torch.device) -> int:
    """Peak so far: allocated by the CUDA allocator, or the process's resident set on CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
