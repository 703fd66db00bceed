"""Whether a run's layers are compiled (`train.compile`): measured on its own micro-batches."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from causal_core.config import Config
from causal_core.device import dtype_of
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
from causal_core.model.layout import rounding
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

    def measured() -> tuple[float, list[Tensor]]:
        """Seconds of one micro-batch, and its gradients."""
        times = []
        for _ in range(_WARM + _TIMED):
            _wait(device)
            begin = time.perf_counter()
            value, _ = micro_batch_loss(model, model(batch), batch, config.loss, counts, reference)
            gradients = torch.autograd.grad(value, trained, materialize_grads=True)
            _wait(device)
            times.append(time.perf_counter() - begin)
        return min(times[_WARM:]), list(gradients)

    was_training, random = model.training, RandomState.of(device)
    model.train()
    try:
        with _without_dropout(model):  # which compiled code draws in another order
            eager, expected = measured()
            compile_layers(model)
            compiled, found = measured()
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
    apart, bound = _apart(found, expected), rounding(dtype_of(config.model.dtype), device) ** 0.5
    if not apart <= bound:
        log.warning(
            "train.compile=auto: layers stay as they are, since compiled ones compute something "
            "else: gradients are %.2g apart (%.2g allowed)", apart, bound,
        )  # fmt: skip
        return False
    faster = eager > _ADVANTAGE * compiled
    log.info(
        "train.compile=auto: layers %s: %.0f ms a micro-batch of %d nodes compiled, %.0f ms as "
        "they are", "are compiled" if faster else "stay as they are", 1e3 * compiled, batch.nodes,
        1e3 * eager,
    )  # fmt: skip
    return faster


def _apart(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Difference of two gradients, relative to the length of the second."""
    pairs = list(zip(found, expected, strict=True))
    difference = torch.stack([(one - other).double().norm() for one, other in pairs]).norm()
    return float(difference / torch.stack([other.double().norm() for _, other in pairs]).norm())


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    dropouts = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    rates = [module.p for module in dropouts]
    for module in dropouts:
        module.p = 0.0
    try:
        yield
    finally:
        for module, rate in zip(dropouts, rates, strict=True):
            module.p = rate


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
