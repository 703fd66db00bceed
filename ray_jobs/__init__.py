"""causal-ray on Ray: the command line, the trainer and what runs on each worker.

The names below are for notebooks (docs/api.md); each is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray_jobs.api import evaluate_run as evaluate_run
    from ray_jobs.api import train_run as train_run

__all__ = ["evaluate_run", "train_run"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("ray_jobs.api"), name)
