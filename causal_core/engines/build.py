"""The engine that a config asks for, around a model."""

from __future__ import annotations

import torch
import torch.distributed as dist

from causal_core.config import Config
from causal_core.engines.base import Engine
from causal_core.model.causal_model import CausalModel


def workers_of_process_group() -> int:
    """Workers of this process's group; 1 where there is none."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def build_engine(config: Config, model: CausalModel, device: torch.device) -> Engine:
    """The engine that a config asks for; `auto` is ddp where several workers run."""
    name = config.engine
    if name == "auto":
        name = "ddp" if workers_of_process_group() > 1 else "plain"
    if name == "deepspeed":
        from causal_core.engines.deepspeed import DeepSpeedEngine

        return DeepSpeedEngine(model, config, device)
    if name == "ddp" and workers_of_process_group() > 1:
        from causal_core.engines.ddp import DdpEngine

        return DdpEngine(model, config.train, device)
    from causal_core.engines.plain import PlainEngine

    return PlainEngine(model, config.train, device)
