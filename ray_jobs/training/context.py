"""The run context of a Ray Train worker."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import ray.train
import ray.train.torch
import torch
from ray.train import Checkpoint, CheckpointUploadMode

from causal_core.checkpoints.store import CheckpointStore
from causal_core.run.trackers import Tracker
from ray_jobs.training.process import STOP_FILE
from ray_jobs.training.prometheus import PrometheusTracker

log = logging.getLogger(__name__)


class RayContext:
    """Implements `causal_core.run.context.RunContext` with Ray Train V2."""

    def __init__(self, directory: Path, location: str, stop_at: int | None) -> None:
        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.world_size: int = context.get_world_size()
        self.device: torch.device = ray.train.torch.get_device()
        self.directory = directory
        self.store = CheckpointStore(location)
        self._stop_at = stop_at
        self._leaving: list[str] = []
        self.trackers: Sequence[Tracker] = (
            [PrometheusTracker(directory.name)] if self.rank == 0 else []
        )

    def report(self, metrics: Mapping[str, float], checkpoint: Path | None, name: str) -> None:
        if checkpoint is None:  # this rank adds no file; Ray merges the ranks' directories
            ray.train.report(dict(metrics), checkpoint_dir_name=name)
            return
        ray.train.report(
            dict(metrics),
            checkpoint=Checkpoint.from_directory(str(checkpoint)),
            checkpoint_dir_name=name,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=True,
        )

    def stop_requested(self, step: int) -> bool:
        asked = self._stop_at is not None and step >= self._stop_at
        return asked or (self.directory / STOP_FILE).exists()

    def save_requested(self) -> bool:
        """Once for every set of nodes that Ray says are being drained (preempted, scaled down)."""
        info = ray.train.get_preemption_info()
        leaving = info.preempted_node_ids if info is not None else []
        if not leaving or leaving == self._leaving:
            return False
        self._leaving = leaving
        log.warning("nodes %s are leaving the cluster: saving a checkpoint", ", ".join(leaving))
        return True
