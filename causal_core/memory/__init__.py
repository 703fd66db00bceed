"""Memory of a run, planned without weights or a GPU, and measured beside the plan."""

from causal_core.memory.fit import (
    automatic_micro_batch,
    largest_micro_batch,
    largest_rank,
    predict_run,
)
from causal_core.memory.plan import MemoryPlan, PhasePlan, predict
from causal_core.memory.shapes import BatchShape, DataProfile

__all__ = [
    "BatchShape",
    "DataProfile",
    "MemoryPlan",
    "PhasePlan",
    "automatic_micro_batch",
    "largest_micro_batch",
    "largest_rank",
    "predict",
    "predict_run",
]
