"""Whether a run's layers are compiled (`train.compile`): measured on its own micro-batches."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import torch

from causal_core.config import Config
from causal_core.engines.base import Engine
from causal_core.errors import ConfigError
from causal_core.loss.objective import (
    Denominators,
    micro_batch_loss,
    needs_of,
    needs_reference,
    reference_hidden,
)
from causal_core.model.compiled import compile_layers, leave_layers
from causal_core.step.random_state import RandomState
from causal_core.tokens.triplet import TripletTokens
from causal_core.trees.packing import Packing, cut_micro_batches

log = logging.getLogger(__name__)

_WARM, _TIMED = 2, 3  # repeats: the first ones compile
_ADVANTAGE = 1.05  # by which compiled layers must be faster to be chosen


def compile_where_faster(
    config: Config,
    engine: Engine,
    packing: Packing,
    triplets: Sequence[TripletTokens],
    budget: int,
    device: torch.device,
    known: bool | None,
) -> bool | None:
    """Compiles the layers of an engine's model, or not, and says why. Collective.

    Args:
        triplets: Of one optimizer step.
        budget: Tree nodes of a micro-batch.
        known: Whether that was faster when this run began; None: not measured.

    Returns:
        The same, with what is known now.

    Raises:
        ConfigError: asked for where it cannot be.
    """
    wish = config.train.compile
    if wish == "on" and device.type == "cpu":
        raise ConfigError(
            "train.compile=on on a CPU: attention runs there in blocks that differ from one "
            "micro-batch to the next, and each would be compiled anew. Set train.compile=off"
        )
    if wish == "on":
        compile_layers(engine.model)
    if wish != "auto" or device.type != "cuda":
        return known
    if engine.collective_forward:
        log.info("train.compile=auto: layers stay as they are, since ZeRO-3 gathers their weights")
        return known
    if known is None:
        known = _is_faster(config, engine, packing, triplets, budget, device)
        agreed = torch.tensor([float(known)], dtype=torch.float64)
        known = float(engine.sum_over_workers(agreed)[0]) == engine.world_size
        leave_layers(engine.model)
    if known:
        compile_layers(engine.model)
    return known


def _is_faster(
    config: Config,
    engine: Engine,
    packing: Packing,
    triplets: Sequence[TripletTokens],
    budget: int,
    device: torch.device,
) -> bool:
    """On this worker, which no other one waits for here: gradients are computed and dropped."""
    micro = cut_micro_batches(triplets, needs_of(config.loss), budget, packing)[0]
    model, batch = engine.model, micro.batch.to(device)
    trained = list(model.trainable_parameters().values())
    counts = Denominators.of(triplets)
    reference = reference_hidden(model, batch) if needs_reference(config.loss) else None

    def seconds() -> float:
        times = []
        for _ in range(_WARM + _TIMED):
            _wait(device)
            begin = time.perf_counter()
            value, _ = micro_batch_loss(model, model(batch), batch, config.loss, counts, reference)
            torch.autograd.grad(value, trained, allow_unused=True)
            _wait(device)
            times.append(time.perf_counter() - begin)
        return min(times[_WARM:])

    was_training, random = model.training, RandomState.of(device)
    model.train()
    try:
        eager = seconds()
        compile_layers(model)
        compiled = seconds()
    except Exception as error:  # noqa: BLE001 - whatever a compiler or a driver can raise
        first = next((line for line in str(error).splitlines() if line.strip()), "")
        log.warning(
            "train.compile=auto: layers stay as they are, since they cannot be compiled here: %s: "
            "%s", type(error).__name__, first.strip()[:200],
        )  # fmt: skip
        return False
    finally:
        model.train(was_training)
        random.restore()
    faster = eager > _ADVANTAGE * compiled
    log.info(
        "train.compile=auto: layers %s: %.0f ms a micro-batch of %d nodes compiled, %.0f ms as "
        "they are", "are compiled" if faster else "stay as they are", 1e3 * compiled, batch.nodes,
        1e3 * eager,
    )  # fmt: skip
    return faster


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
