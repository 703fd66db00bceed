"""What a config becomes before the first step: datasets, model, engine, optimizer, plan."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch

from causal_core.checkpoints.adapter import start_from
from causal_core.config import CheckpointSection, Config, run_directory
from causal_core.device import device_memory_bytes
from causal_core.engines.base import Engine
from causal_core.engines.build import build_engine
from causal_core.errors import UserError
from causal_core.files import cache_root
from causal_core.loss.objective import needs_of
from causal_core.model import matmul
from causal_core.model.causal_model import build_model
from causal_core.model.device_costs import Measurements, measurements_of, takes_bfloat16
from causal_core.model.layout import packing_for
from causal_core.model.matmul import LIBRARIES
from causal_core.pretrained.loading import (
    base_fingerprint,
    load_base,
    loading_device,
    resolve_model,
)
from causal_core.run.compiling import compile_where_faster
from causal_core.run.self_tested import self_tested
from causal_core.tokens.batches import StepPlan
from causal_core.tokens.dataset import TripletDataset
from causal_core.tokens.run_data import RunData, load_run_data, step_plan
from causal_core.tokens.triplet import TripletTokens
from causal_core.trees.needs import Needs
from causal_core.trees.packing import (
    Packing,
    preferred_packing,
    too_large,
    tree_nodes,
    with_cost,
)

if TYPE_CHECKING:
    from causal_core.memory.plan import Calibration

log = logging.getLogger(__name__)

MEASUREMENTS = "measurements.json"  # in the run directory


@dataclass
class Session:
    """Everything that a training loop works with, on one worker."""

    data: RunData
    plan: StepPlan
    engine: Engine
    base_fingerprint: str
    selection: CheckpointSection  # how the best checkpoint is chosen, given this validation data
    packing: Packing
    token_budget: int  # of a micro-batch: `train.micro_batch_tokens` as a number
    calibration: Calibration | None = None  # of the memory plan, with `resources.probe_memory`

    def triplets_of(self, step: int, seed: int) -> list[TripletTokens]:
        """The global batch of an optimizer step (from 0)."""
        epoch = self.plan.epoch_of(step)
        return [self.data.tokens(int(row), epoch) for row in self.plan.batch(step, seed)]


def open_session(config: Config, device: torch.device) -> Session:
    """Loads and builds everything, the same on every worker."""
    data = load_run_data(config)
    needs = needs_of(config.loss)
    available = _available_bytes(config, device)  # before anything is loaded
    tokens = _token_budget(config, data.train, needs, available)
    check_micro_batch_budget(data.train, needs, tokens)
    if data.fresh is not None and data.fresh.largest > tokens:
        raise UserError(
            f"with data.fresh_attacks a triplet may need {data.fresh.largest} tree nodes, as many "
            f"as the largest of the file, more than train.micro_batch_tokens={tokens}: raise it to "
            f"at least {data.fresh.largest}, or lower data.max_length with data.overlong=drop"
        )
    # Whole columns were computed with: Arrow's pool would keep their memory for the run.
    pa.default_memory_pool().release_unused()
    base = load_base(config.model, loading_device(config, device), config.data.cache_dir)
    fingerprint = base_fingerprint(resolve_model(config.model, config.data.cache_dir), base)
    model = build_model(base, config.lora, config.run.seed, config.train.gradient_checkpointing)
    fingerprint = start_from(model, config, fingerprint)
    asked = config.frozen_products()
    cache = cache_root(config.data.cache_dir)
    measured = measurements_of(model, device, cache, bfloat16=asked != "float32")
    # What rank 0 measured decides, and may refuse, when all workers know it.
    here = takes_bfloat16("auto" if asked == "bfloat16" else asked, measured.bfloat16_speed)
    with matmul.using(measured.products, here):  # before an engine shards the model
        self_tested(model, config, fingerprint, _extremes(data.train), device)
    engine = build_engine(config, model, device)
    check_same_base(fingerprint, engine)
    measured = _kept(measured, engine, run_directory(config) / MEASUREMENTS)
    matmul.use(measured.products, takes_bfloat16(asked, measured.bfloat16_speed))
    if matmul.in_bfloat16():
        log.info(
            "products with frozen weights are in bfloat16, %.1f times as fast as float32 here",
            measured.bfloat16_speed,
        )
    packing = with_cost(packing_for(model, device), measured.packing_cost)
    if packing.flat != preferred_packing(device).flat:  # which was planned for
        tokens = _token_budget(config, data.train, needs, available, packing=packing)
    plan = step_plan(config, len(data.train))
    first = [data.tokens(int(row), 0) for row in plan.batch(0, config.run.seed)]
    compiled = compile_where_faster(
        config, engine, packing, first, tokens, device, measured.compiled
    )
    if engine.rank == 0 and compiled != measured.compiled:
        replace(measured, compiled=compiled).write(run_directory(config) / MEASUREMENTS)
    calibration = _calibration(config, engine, packing, data.train, device)
    if calibration is not None:
        tokens = _token_budget(config, data.train, needs, available, calibration, packing)
    if engine.collective_forward:  # all workers validate all rows, and must cut them alike
        tokens = int(min(_of_all_workers(tokens, engine)))
    return Session(
        data=data,
        plan=plan,
        engine=engine,
        base_fingerprint=fingerprint,
        selection=_selection(config, data.validation),
        packing=packing,
        token_budget=tokens,
        calibration=calibration,
    )


def _extremes(dataset: TripletDataset) -> list[TripletTokens]:
    """The longest triplet and the shortest."""
    order = np.argsort(dataset.size_bounds(), kind="stable")
    triplets = (dataset.tokens(int(index)) for index in {order[-1], order[0]})
    return [triplet.attacked(_longest_injection(triplet)) for triplet in triplets]


def _longest_injection(triplet: TripletTokens) -> int | None:
    lengths = [len(injection.prompt) for injection in triplet.injections]
    return lengths.index(max(lengths)) if lengths else None


def _available_bytes(config: Config, device: torch.device) -> int:
    """Memory of this worker's device, or its share of what it has."""
    memory, share = device_memory_bytes(device), config.resources.gpus_per_worker
    if device.type == "cpu":
        return memory // max(1, config.resources.max_workers)
    return int(memory * share) if 0 < share < 1 else memory


def _token_budget(
    config: Config,
    dataset: TripletDataset,
    needs: Needs,
    available: int,
    calibration: Calibration | None = None,
    packing: Packing | None = None,
) -> int:
    """Tokens of a micro-batch: as given, or with `auto` the most that fit this worker's device.

    By invariant I2 workers may differ in it, and the result stays the same.
    """
    tokens = config.train.micro_batch_tokens
    if tokens != "auto":
        return tokens
    from causal_core.memory import DataProfile, automatic_micro_batch

    tokens = automatic_micro_batch(
        config,
        available_bytes=available,
        data=DataProfile.of(dataset, needs),
        packing=packing,
        calibration=calibration,
    )
    log.info("train.micro_batch_tokens=auto: %d fit the device", tokens)
    return tokens


def check_micro_batch_budget(dataset: TripletDataset, needs: Needs, budget: int) -> None:
    """Every triplet must fit a micro-batch: known from the data, before the first step.

    Raises:
        UserError: names the largest triplet and the budget that it needs.
    """
    bounds = dataset.size_bounds()
    worst: tuple[int, str] = (0, "")
    for index in np.flatnonzero(bounds > budget):  # only where sharing prefixes could matter
        triplet = dataset.tokens(int(index))
        worst = max(worst, (tree_nodes(triplet, needs), triplet.id))
    if worst[0] > budget:
        raise too_large(worst[1], worst[0], budget)


def check_same_base(fingerprint: str, engine: Engine) -> None:
    """Every worker has read its base from its own disk, and none is sent to another.

    Raises:
        UserError: some have another base, or adapter to start from, than worker 0.
    """
    digest = hashlib.sha256(fingerprint.encode()).hexdigest()
    found = _of_all_workers(int(digest[:12], 16), engine)  # float64 holds 48 bits exactly
    if others := [str(rank) for rank, number in enumerate(found) if number != found[0]]:
        raise UserError(
            f"worker {', '.join(others)} of {engine.world_size} read another base model (or "
            "adapter to start from) than worker 0, so they would train different models: make "
            "model.name_or_path the same files on every node, or pin model.revision"
        )


def _of_all_workers(number: int, engine: Engine) -> list[float]:
    """Each worker's number. Collective."""
    own = torch.zeros(engine.world_size, dtype=torch.float64)
    own[engine.rank] = number
    found: list[float] = engine.sum_over_workers(own).tolist()
    return found


def _kept(measured: Measurements, engine: Engine, path: Path) -> Measurements:
    """What this run began with, on all workers that of rank 0.

    Others would be as exact, but a resumed run is to repeat every rounding.
    """
    if engine.rank == 0:
        kept = Measurements.read(path)
        if kept is not None:
            # A run that was cut before its first checkpoint may go on in other products.
            speed = kept.bfloat16_speed or measured.bfloat16_speed
            measured = replace(kept, bfloat16_speed=speed)
        if measured != kept:
            measured.write(path)
    values = [
        measured.packing_cost,
        LIBRARIES.index(measured.products),
        _COMPILED.index(measured.compiled),
        measured.bfloat16_speed or 0.0,
    ]
    own = values if engine.rank == 0 else [0.0] * len(values)
    shared = engine.sum_over_workers(torch.tensor(own, dtype=torch.float64))
    cost, library, compiled, speed = shared.tolist()
    return Measurements(cost, LIBRARIES[int(library)], _COMPILED[int(compiled)], speed or None)


_COMPILED = (None, False, True)


def _calibration(
    config: Config,
    engine: Engine,
    packing: Packing,
    dataset: TripletDataset,
    device: torch.device,
) -> Calibration | None:
    """What a rehearsal of the largest triplet says of the memory plan, where it is asked for."""
    if not config.resources.probe_memory:
        return None
    from causal_core.memory.probe import rehearse

    return rehearse(config, engine, packing, dataset, device)


def _selection(config: Config, validation: TripletDataset | None) -> CheckpointSection:
    """The config's, except that uplift needs a witness to look at."""
    chosen = config.checkpoint
    if (
        chosen.metric not in ("uplift", "attack_success")
        or validation is None
        or validation.has_witness()
    ):
        return chosen
    log.warning(
        "no validation triplet has a witness, so there is no %s to choose the best checkpoint by: "
        "the lowest benign_nll is chosen instead",
        chosen.metric,
    )
    return chosen.model_copy(update={"metric": "benign_nll"})
