"""What the training loop sees of the world around it, and a directory-based implementation.

`ray_jobs.context` implements the same protocol with Ray Train.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from causal_core.checkpoint import copy_checkpoint


class RunContext(Protocol):
    """One worker's view of a run."""

    rank: int
    world_size: int
    device: torch.device
    directory: Path  # the run directory

    def report(self, metrics: Mapping[str, float], checkpoint: Path | None, name: str) -> None:
        """Hands over metrics and a finished local checkpoint directory (rank 0; others None).

        All ranks call it at the same steps. The directory belongs to the context afterwards.
        """

    def should_stop(self) -> bool:
        """Whether the run was asked to stop at the next step boundary (same on all ranks)."""


@dataclass
class LocalContext:
    """One worker in this process: `resources.workers: 0`, notebooks and most tests."""

    directory: Path
    device: torch.device
    keep_last: int = 3
    rank: int = 0
    world_size: int = 1

    def report(self, metrics: Mapping[str, float], checkpoint: Path | None, name: str) -> None:
        if checkpoint is None:
            return
        folder = self.directory / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        copy_checkpoint(checkpoint, folder / name)
        for old in sorted(folder.glob("step-*"))[: -self.keep_last]:
            _remove(old)

    def should_stop(self) -> bool:
        return False


def _remove(checkpoint: Path) -> None:
    """Deletes a checkpoint, its manifest first: what is left of an interrupted delete is none."""
    import shutil

    (checkpoint / "manifest.json").unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)
