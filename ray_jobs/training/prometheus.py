"""Metrics of a running training on Ray's Prometheus endpoint (port 8080 of every node by default).

Ray puts `ray_` before the names: `ray_causal_step_seconds{run="..."}`.
"""

from __future__ import annotations

from collections.abc import Mapping

from causal_core.evaluation.metrics import METRIC

# Scalar of the run log -> (metric, what it is). The skipped steps are counted below.
EXPORTED: dict[str, tuple[str, str]] = {
    "performance/seconds": ("causal_step_seconds", "Seconds of the last optimizer step."),
    "performance/triplets_per_second": ("causal_triplets_per_second", "Of the last step."),
    "performance/nodes_per_second": (
        "causal_tokens_per_second",
        "Distinct tokens (nodes of the prefix trees) computed per second by rank 0.",
    ),
    "performance/peak_memory_bytes": (
        "causal_memory_peak_bytes",
        "Peak so far on rank 0: CUDA allocator, or resident set on CPU.",
    ),
    "performance/measured_memory_bytes": (
        "causal_memory_measured_bytes",
        "Peak of allocated memory on rank 0 until the first checkpoint.",
    ),
    "performance/planned_memory_bytes": (
        "causal_memory_planned_bytes",
        "What the planner says of that peak.",
    ),
    "train/loss": ("causal_loss", "Of the last step."),
    "train/skipped": ("causal_skipped_steps_total", "Steps whose gradient was not finite."),
    "validation/uplift": ("causal_validation_uplift", f"{METRIC['uplift'].title}, in nats."),
    "validation/attack_success": (
        "causal_validation_attack_success",
        f"{METRIC['attack_success'].title} on validation data (checkpoint.metric=attack_success).",
    ),
}
STEP = "causal_step"
_COUNTED = "train/skipped"


class PrometheusTracker:
    """A `causal_core.run.trackers.Tracker` that sets Ray metrics; for use in a Ray worker."""

    def __init__(self, run: str) -> None:
        from ray.util.metrics import Counter, Gauge

        self._step = Gauge(STEP, "Optimizer steps so far.", tag_keys=("run",))
        self._gauges = {
            scalar: Gauge(name, description, tag_keys=("run",))
            for scalar, (name, description) in EXPORTED.items()
            if scalar != _COUNTED
        }
        name, description = EXPORTED[_COUNTED]
        self._skipped = Counter(name.removesuffix("_total"), description, tag_keys=("run",))
        for metric in (self._step, self._skipped, *self._gauges.values()):
            metric.set_default_tags({"run": run})

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Sets the metrics among `values`; other scalars are no metric."""
        self._step.set(step)
        for scalar, gauge in self._gauges.items():
            if scalar in values:
                gauge.set(float(values[scalar]))
        if values.get(_COUNTED):
            self._skipped.inc()

    def close(self) -> None:
        """Nothing to do: Ray drops a worker's metrics when the worker ends."""
