"""The training core: data, prefix trees, model, losses, step, checkpoints, evaluation.

Nothing here imports ray; `ray_jobs` wraps this package for a cluster.
"""

__version__ = "0.1.0"
