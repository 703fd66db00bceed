"""Tiny sweeps for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.tiny_run import tiny_config
from tune_spaces.config import SweepConfig, load_sweep

SPACE = {
    "loss.lambda_robust": {"kind": "log_uniform", "low": 0.1, "high": 10, "zero": 0.3},
    "lora.rank": {"kind": "choice", "values": [2, 4]},
}


def write_sweep(
    path: Path, model: Path, data: Path, run: Path, sections: dict[str, Any], **tune: Any
) -> Path:
    """A sweep's YAML file over the tiny model."""
    config = tiny_config(model, data, run, **{"resources": {"workers": 1}, **sections})
    tree = config.model_dump(mode="json")
    tree["tune"] = {"space": SPACE, "trials": 3, **tune}
    path.write_text(yaml.safe_dump(tree))
    return path


def tiny_sweep(
    model: Path, data: Path, run: Path, sections: dict[str, Any] | None = None, **tune: Any
) -> SweepConfig:
    """A sweep over the tiny model; keyword arguments are its `tune` section."""
    run.parent.mkdir(parents=True, exist_ok=True)
    path = run.parent / f"{run.name}.yaml"
    return load_sweep(write_sweep(path, model, data, run, sections or {}, **tune))
