"""What the training loop sees of the world around it, and a directory-based implementation.

`ray_jobs.training.context` implements the same protocol with Ray Train.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from causal_core.checkpoints.store import CheckpointStore, checkpoint_location
from causal_core.run.trackers import Tracker


class RunContext(Protocol):
    """One worker's view of a run."""

    rank: int
    world_size: int
    device: torch.device
    directory: Path  # the run directory
    store: CheckpointStore
    trackers: Sequence[Tracker]  # of the surroundings, beside those that the config names

    def report(self, metrics: Mapping[str, float], checkpoint: Path | None, name: str) -> None:
        """Hands over metrics and a finished local checkpoint directory (rank 0; others None).

        All ranks call it at the same steps. The directory belongs to the context afterwards.
        """

    def stop_requested(self, step: int) -> bool:
        """Whether this worker knows of a request to stop after `step` optimizer steps; the loop
        asks all workers and stops where any of them knows."""

    def save_requested(self) -> bool:
        """Whether a checkpoint is wanted now, out of turn: a machine is about to be taken away.

        All ranks call it after every step and get the same answer.
        """


@dataclass
class LocalContext:
    """One worker on this machine, without Ray: in this process (`resources.workers: 0`, notebooks,
    most tests) or in one of its own."""

    directory: Path
    device: torch.device
    store: CheckpointStore = field(init=False)
    keep_last: int = 3
    storage: str | None = None
    stop_at: int | None = None
    stop: bool = False  # set by a signal handler
    stop_file: Path | None = None  # another process asks to stop by making it
    rank: int = 0
    world_size: int = 1
    trackers: Sequence[Tracker] = ()

    def __post_init__(self) -> None:
        self.store = CheckpointStore(checkpoint_location(self.directory, self.storage))

    def report(self, metrics: Mapping[str, float], checkpoint: Path | None, name: str) -> None:
        if checkpoint is None:
            return
        self.store.put(checkpoint, name)
        shutil.rmtree(checkpoint)
        self.store.keep_last(self.keep_last, name)

    def stop_requested(self, step: int) -> bool:
        asked = self.stop or (self.stop_file is not None and self.stop_file.exists())
        return asked or (self.stop_at is not None and step >= self.stop_at)

    def save_requested(self) -> bool:
        return False
