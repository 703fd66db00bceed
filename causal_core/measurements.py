"""What is measured once on a device, remembered for it, and kept by every run that began with it.

Each choice made from it changes rounding in the last digits and nothing else, so it should not
follow the noise of a clock, and a resumed run is to repeat every rounding.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from causal_core import products
from causal_core.model import CausalModel
from causal_core.packing_cost import attention_shape, measured_call_cost, measured_score_cost
from causal_core.products import LIBRARIES, Library, fastest_library

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measurements:
    """Of one device and one shape of attention heads."""

    packing_cost: float  # see `packing_cost.py`
    products: Library  # of float32 products on CPU, see `products.py`

    @classmethod
    def read(cls, path: Path) -> Measurements | None:
        """None where there is no such file, or none that can be understood."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            cost, library = float(content["packing_cost"]), content["products"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if library not in LIBRARIES or (library == "onednn" and not products.has_onednn()):
            return None
        return cls(cost, library)

    def write(self, path: Path) -> None:
        """Whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        with os.fdopen(handle, "w", encoding="utf-8") as target:
            json.dump(asdict(self), target)
            target.write("\n")
        Path(temporary).replace(path)


def measure(model: CausalModel, device: torch.device) -> Measurements:
    """Takes about a second."""
    if device.type != "cpu":
        return Measurements(measured_score_cost(model, device), "torch")
    return Measurements(measured_call_cost(*attention_shape(model)), fastest_library())


def measurements_of(model: CausalModel, device: torch.device, cache: Path) -> Measurements:
    """The remembered ones of a device and a model's attention, measured where there are none."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    parts = (name, torch.get_num_threads(), *attention_shape(model))
    key = "-".join(re.sub(r"\W+", "_", str(part)) for part in parts)
    entry = cache / "measurements" / f"{key}.json"
    found = Measurements.read(entry)
    if found is None:
        found = measure(model, device)
        try:
            found.write(entry)
        except OSError as error:  # a read-only cache costs a second at the next start
            log.info("what was measured on this device is not kept: %s", error)
    return found


def _processor() -> str:
    """The CPU's name: a cache on a shared disk serves several machines."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        return platform.machine()
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return name[1] if name else platform.machine()
