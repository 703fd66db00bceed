"""The training core: data, prefix trees, model, losses, step, checkpoints, evaluation.

Nothing here imports ray; `ray_jobs` wraps this package for a cluster. The names below are for
notebooks (docs/api.md); each is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from causal_core.openmp import set_waiting

if TYPE_CHECKING:
    from causal_core.config_file import load_config as load_config
    from causal_core.export.build import ExportOptions as ExportOptions
    from causal_core.export.build import export_run as export_run
    from causal_core.inference import load as load
    from causal_core.report.run_report import write_report as write_report

set_waiting()  # before any module of this package imports torch

__version__ = "0.1.0"
__all__ = ["ExportOptions", "export_run", "load", "load_config", "write_report"]

_HOMES = {
    "load_config": "causal_core.config_file",
    "load": "causal_core.inference",
    "write_report": "causal_core.report.run_report",
    "export_run": "causal_core.export.build",
    "ExportOptions": "causal_core.export.build",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
