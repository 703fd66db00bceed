"""Side-by-side measurements: run each as `python -m benchmarks.NAME`."""

import causal_core  # noqa: F401  (before torch: how its threads wait is read at its import)
