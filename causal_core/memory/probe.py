"""The plan's constant part, measured: one rehearsed step on the largest triplet, before training.

A plan counts tensors. What a driver, its libraries and their kernels keep for themselves differs
by machine, and shows once a step has run. The rehearsal moves nothing: gradients are cleared and
generators put back.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import torch

from causal_core.amounts import gib
from causal_core.config import Config
from causal_core.engines.base import Engine
from causal_core.loss.objective import needs_of
from causal_core.memory.measure import MemoryMeter
from causal_core.memory.plan import Calibration, MemoryPlan
from causal_core.step.random_state import RandomState
from causal_core.step.train_step import TrainStep
from causal_core.tokens.dataset import TripletDataset
from causal_core.tokens.triplet import TripletTokens
from causal_core.trees.packing import Packing, tree_nodes

log = logging.getLogger(__name__)


def rehearse(
    config: Config,
    engine: Engine,
    packing: Packing,
    dataset: TripletDataset,
    device: torch.device,
) -> Calibration | None:
    """Runs the gradients of the largest triplet, twice in two micro-batches, and drops them.

    Collective: all workers rehearse the same triplet.

    Returns:
        None where nothing counts this worker's memory (several workers on CPU), or where the model
        cannot be planned.

    Raises:
        RunFailedError: not even this one triplet fits the device.
    """
    triplet = _largest(dataset, config)
    nodes = tree_nodes(triplet, needs_of(config.loss))
    meter = MemoryMeter(config, engine, device)
    step = TrainStep(engine, config.loss, config.train, device, nodes, meter.saw, packing)
    resident = _resident_bytes()  # before: afterwards the C library keeps freed memory
    random = RandomState.of(device)
    with meter.step():
        step.rehearse([triplet, triplet])
    random.restore()
    found = meter.rehearsed()
    if found is None:
        return None
    plan, measured = found
    on_gpu = device.type == "cuda"  # its allocator has counted since the base was loaded
    predicted = max(
        plan.phases[name].peak_bytes - plan.phases[name].components["optimizer_state"]
        for name in ("load", "forward", "backward")
        if on_gpu or name != "load"
    )  # the optimizer makes its state in its first step, which was not taken
    calibration = Calibration(predicted, measured, _outside_bytes(plan, config, device, resident))
    log.info(
        "rehearsal of the largest triplet (%d tree nodes): planned %s, measured %s allocated; %s "
        "outside of the allocator (assumed: %s)",
        nodes, gib(predicted), gib(measured), gib(calibration.outside_bytes),
        gib(plan.outside_bytes),
    )  # fmt: skip
    return calibration


def _largest(dataset: TripletDataset, config: Config) -> TripletTokens:
    """The triplet with the largest tree, the first of several."""
    needs, bounds = needs_of(config.loss), dataset.size_bounds()
    best: tuple[int, TripletTokens] | None = None
    for index in np.argsort(-bounds, kind="stable"):
        if best is not None and bounds[index] <= best[0]:
            break
        triplet = dataset.tokens(int(index))
        nodes = tree_nodes(triplet, needs)
        if best is None or nodes > best[0]:
            best = nodes, triplet
    assert best is not None, "a run has at least one triplet"
    return best[1]


def _outside_bytes(plan: MemoryPlan, config: Config, device: torch.device, resident: int) -> int:
    """What the device holds outside of torch's allocator; a share of a GPU cannot be told apart."""
    if device.type == "cpu":
        return max(0, resident - plan.phases["load"].peak_bytes)
    if config.resources.gpus_per_worker < 1:
        return plan.outside_bytes
    free, total = torch.cuda.mem_get_info(device)
    return total - free - torch.cuda.memory_reserved(device)


def _resident_bytes() -> int:
    """This process's resident set; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
