"""How long a sweep will take, before it has measured anything: an estimate from this machine's
matrix-product rate."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from causal_core.config import Config

if TYPE_CHECKING:
    from causal_core.tokens.run_data import RunData

START_SECONDS = 30.0  # of a trial's processes, imports and model, as seen on two CPU cores
SHARE_OF_RATE = 0.5  # of the machine's matrix-product rate that training steps reach
_SIZE = 1024
_TRAINING, _SCORING, _ANSWERING = 4, 2, 6  # products per frozen parameter and token


def seconds_per_trial(config: Config, data: RunData, steps: int, at_a_time: int) -> float:
    """Expected seconds of one trial beside others, on this machine's cores.

    A frozen parameter costs two operations per token forwards and two backwards (its own gradient
    is not computed). Validation is scored at every checkpoint and answered once at the end.

    Args:
        steps: Optimizer steps.
        at_a_time: Trials that share the cores.
    """
    from causal_core.model.causal_model import parameter_counts

    base = parameter_counts(config)["base"]
    trained = steps * config.train.global_batch * data.train.mean_tokens()
    assert data.validation is not None
    validation = len(data.validation) * data.validation.mean_tokens()
    checkpoints = max(1, steps // config.checkpoint.every_steps)
    work = base * (
        _TRAINING * trained + (_SCORING * checkpoints + _ANSWERING) * validation
    )  # fmt: skip
    return START_SECONDS * min(2, at_a_time) + work * at_a_time / (SHARE_OF_RATE * matrix_rate())


def matrix_rate() -> float:
    """Measured floating-point operations per second of float32 matrix products on the CPU."""
    import torch

    a = torch.randn(_SIZE, _SIZE)
    a @ a
    fastest = float("inf")  # of several: what else runs here should not count twice
    for _ in range(10):
        begin = time.perf_counter()
        a @ a
        fastest = min(fastest, time.perf_counter() - begin)
    return 2 * _SIZE**3 / fastest
