"""Telling that a device's memory ran out, and going back to before the attempt."""

from __future__ import annotations

import torch

# What libraries say when it is not torch's own OutOfMemoryError.
_MESSAGES = (
    "can't allocate memory",  # torch's CPU allocator
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDA out of memory",
    "CUDA error: out of memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device, or the host, has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _MESSAGES)


def release_cached_memory(device: torch.device) -> None:
    """Gives the allocator's free blocks back to the driver: smaller ones are needed now."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
