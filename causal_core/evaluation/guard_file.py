"""A fitted detector on disk: `guard/guard.safetensors` in a run directory or an export.

It belongs to the weights that it was fitted on, and says which those are. It may be another's: no
more is read than numbers and the names below.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from causal_core.errors import UserError
from causal_core.evaluation.guard import ReadOut
from causal_core.evaluation.representations import HEAD, MEAN
from causal_core.files import checked_file, whole_or_absent
from causal_core.visible_text import shown

FOLDER, RECORD, WEIGHTS = "guard", "guard.json", "guard.safetensors"
_SHAPES: dict[str, int] = {"weight": 1, "bias": 0, "threshold": 0}  # number of dimensions
_MOST_BYTES = 2**24  # a direction has as many numbers as a model is wide


@dataclass(frozen=True)
class Guard:
    """A read-out, what it is read off, and of which weights."""

    read_out: ReadOut
    kind: str  # `HEAD` or `MEAN`
    weights: str  # `Manifest.weights()` of the checkpoint that it was fitted on


def write_guard(path: Path, guard: Guard) -> None:
    """Writes a detector, whole or not at all."""
    numbers = guard.read_out
    with whole_or_absent(path) as temporary:
        save_file(
            {
                "weight": torch.from_numpy(numbers.weight),
                "bias": torch.tensor(numbers.bias, dtype=torch.float64),
                "threshold": torch.tensor(numbers.threshold, dtype=torch.float64),
            },
            temporary,
            metadata={"read_out": guard.kind, "weights": guard.weights},
        )


def read_guard(path: Path) -> Guard:
    """A detector as it was written.

    Raises:
        FileNotFoundError: there is none.
        UserError: the file is damaged, or no detector.
    """
    try:
        if checked_file(path).st_size > _MOST_BYTES:
            raise ValueError("larger than any detector")
        with safe_open(path, framework="numpy") as stored:
            about = stored.metadata() or {}
            found = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        shapes = {name: value.ndim for name, value in found.items()}
        if shapes != _SHAPES or any(v.dtype != np.float64 for v in found.values()):
            raise ValueError("other numbers than a direction, a bias and a threshold")
        if not all(np.isfinite(value).all() for value in found.values()):
            raise ValueError("numbers that are not finite")
        if about.get("read_out") not in (HEAD, MEAN):
            raise ValueError("it does not say what it is read off")
    except FileNotFoundError:
        raise
    except (OSError, SafetensorError, ValueError, TypeError) as problem:
        reason = getattr(problem, "strerror", None) or str(problem)
        raise UserError(
            f"{shown(str(path))} is no detector as causal guard writes it ({shown(reason[:200])}): "
            "fit it again with causal guard RUN_DIR"
        ) from problem
    read_out = ReadOut(found["weight"], float(found["bias"]), float(found["threshold"]))
    return Guard(read_out, about["read_out"], about.get("weights", ""))
