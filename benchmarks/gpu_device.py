"""The device that a contact is with: what it is, what it computes and copies in a second."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import versions
from causal_core.device import device_memory_bytes
from causal_core.files import write_whole
from causal_core.model.device_costs import processor_name

# Dense bfloat16 products with float32 sums, FLOP/s, by words of the device's name: from data sheets
# (without the factor of two for sparse matrices) and, for GeForce, architecture white papers.
PEAKS = {
    "H200": (989e12, "NVIDIA H200 data sheet"),
    "H100 PCIe": (756e12, "NVIDIA H100 PCIe data sheet"),
    "H100 NVL": (835e12, "NVIDIA H100 NVL data sheet"),
    "H100": (989e12, "NVIDIA H100 SXM data sheet"),
    "A100": (312e12, "NVIDIA A100 data sheet"),
    "L40S": (362e12, "NVIDIA L40S data sheet"),
    "L4": (121e12, "NVIDIA L4 data sheet"),
    "A10": (125e12, "NVIDIA A10 data sheet"),
    "RTX 4090": (165.2e12, "NVIDIA Ada GPU architecture white paper"),
    "RTX 3090": (71e12, "NVIDIA Ampere GA102 white paper"),
}


@dataclass
class Part:
    """Where a part runs, and what it has measured so far."""

    file: Path
    tiny: bool
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """The first GPU; under --tiny the CPU, so that all of this is tested without one."""
        return torch.device("cpu") if self.tiny else torch.device("cuda", 0)

    def keep(self, **values: Any) -> None:
        """Adds to what was measured, and writes all of it."""
        self.found |= values
        write_whole(self.file, json.dumps(self.found, indent=1))


def machine(part: Part) -> None:
    """Device, versions, rates of matrix products and of copies."""
    device, size = part.device, 128 if part.tiny else 8192
    name = processor_name() if part.tiny else torch.cuda.get_device_name(device)
    part.keep(device=name, memory_bytes=device_memory_bytes(device), processor=processor_name())
    part.keep(versions={"torch": torch.__version__, "cuda": torch.version.cuda,
                        **versions(["transformers", "peft", "bitsandbytes"])})  # fmt: skip
    if not part.tiny:
        part.keep(capability=".".join(map(str, torch.cuda.get_device_capability(device))))
    for dtype in (torch.bfloat16, torch.float32):
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        seconds = _median_seconds(lambda a=a, b=b: a @ b, device)
        rate = {str(dtype).removeprefix("torch."): 2.0 * size**3 / seconds}
        part.keep(flops=part.found.get("flops", {}) | rate)
    data = torch.empty(2**20 if part.tiny else 2**30, dtype=torch.uint8, device=device)
    seconds = _median_seconds(lambda: data.clone(), device)
    part.keep(copied_bytes_per_second=2 * data.numel() / seconds)
    known = known_peak(name)
    if known is not None:
        part.keep(peak_flops=known[0], peak_source=known[1])
    else:
        part.keep(peak_flops=part.found["flops"]["bfloat16"], peak_source="measured product")


def known_peak(device_name: str) -> tuple[float, str] | None:
    """FLOP/s of a card that the table knows, and where they are from."""
    return next((peak for name, peak in PEAKS.items() if _named(name, device_name)), None)


def _named(name: str, device_name: str) -> bool:
    """Whether the words of a name are there as words: an L4 is no L40S."""
    return f" {name} " in f" {device_name.replace('-', ' ')} "


def _median_seconds(run: Callable[[], object], device: torch.device) -> float:
    run()
    seconds = []
    for _ in range(5):
        wait_for(device)
        begin = time.perf_counter()
        run()
        wait_for(device)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
