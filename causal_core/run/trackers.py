"""Experiment trackers: where scalars go besides the run's own files.

TensorBoard is written by default. MLflow and Weights & Biases are extras of the distribution
(`pip install causal-ray[mlflow]`, `[wandb]`), chosen by `logging.trackers`; their credentials come
from their own environment variables and never pass through this program.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from causal_core.errors import ConfigError
from causal_core.files import write_whole

_MLFLOW_RUN = ".mlflow-run"


class Tracker(Protocol):
    """Takes scalars by name and step."""

    def scalars(self, values: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class TensorBoardTracker:
    """Event files below the run directory; events beyond the resumed step are purged."""

    def __init__(self, directory: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class MlflowTracker:
    """One MLflow run per run directory; a resume continues it."""

    def __init__(self, directory: Path, project: str) -> None:
        import mlflow

        self._mlflow = mlflow
        marker = directory / _MLFLOW_RUN
        mlflow.set_experiment(project)
        known = marker.read_text(encoding="utf-8") if marker.is_file() else None
        run = mlflow.start_run(run_id=known, run_name=directory.name)
        write_whole(marker, run.info.run_id)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._mlflow.log_metrics(dict(values), step=step)

    def close(self) -> None:
        self._mlflow.end_run()


class WandbTracker:
    """One Weights & Biases run per run directory; a resume continues it."""

    def __init__(self, directory: Path, project: str) -> None:
        import wandb

        self._run = wandb.init(
            project=project, name=directory.name, dir=str(directory), resume="allow",
            id=str(directory).strip("/").replace("/", "-")[-64:],
        )  # fmt: skip

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


def open_trackers(names: Sequence[str], directory: Path, project: str, step: int) -> list[Tracker]:
    """The trackers of a run that continues after `step`."""
    check_trackers(names)
    makers: dict[str, Any] = {
        "tensorboard": lambda: TensorBoardTracker(directory, step),
        "mlflow": lambda: MlflowTracker(directory, project),
        "wandb": lambda: WandbTracker(directory, project),
    }
    return [makers[name]() for name in names]


def check_trackers(names: Sequence[str]) -> None:
    """Refuses trackers that are not installed, before a run starts (`ConfigError`)."""
    for name in names:
        if name != "tensorboard" and importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"logging.trackers: {name} is not installed; pip install 'causal-ray[{name}]', or "
                "leave it out"
            )
