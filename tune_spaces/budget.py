"""The gate: no point of the space reaches a device before its memory is planned.

A point that fits gets the largest micro-batch that does, at the same global batch: the result is
the same (a micro-batch only cuts it), so trials stay comparable. One that does not fit at any
micro-batch of use is refused with the bytes it would have needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from causal_core.amounts import gib
from causal_core.config import Config
from causal_core.errors import ConfigError, UserError
from causal_core.loss.objective import needs_of
from causal_core.memory import MemoryPlan, largest_micro_batch, predict, predict_run
from causal_core.memory.fit import least_tokens
from causal_core.memory.levers import nearest_fit
from causal_core.memory.plan import device_of
from causal_core.memory.shapes import DataProfile
from ray_jobs.training.resources import accelerator_types, nodes_with
from tune_spaces.config import SweepConfig
from tune_spaces.space import Point, SearchSpace

SAMPLE = 200  # points drawn to say how much of a space fits


@dataclass(frozen=True)
class Admission:
    """What the plan of a point came to."""

    config: Config | None  # the run to start; None: refused
    predicted_bytes: int | None  # a worker's need on its device; None: it could not be planned
    comparable_bytes: int | None  # what the measured peak is to be compared with
    micro_batch_tokens: int | None
    reason: str = ""
    accelerator_type: str | None = None  # of the nodes that it is to run on; None: any


class Gate:
    """Plans points against the budgets of the devices they may run on.

    Args:
        budgets: Bytes of a worker's device by accelerator type (None: any type), smallest first;
            empty admits everything, planned all the same.
    """

    def __init__(self, budgets: Mapping[str | None, int]) -> None:
        self.budgets = budgets
        self.budget_bytes = max(budgets.values(), default=None)
        self._profiles: dict[str, DataProfile] = {}

    def admit(self, config: Config, load: Mapping[str | None, float] | None = None) -> Admission:
        """Plans one run and chooses where it runs, and its micro-batch there.

        Args:
            load: How full each accelerator type is, 1 for full. Of those that the run fits, the
                least loaded one takes it, of equal ones the smallest.

        Raises:
            UserError: the model or the data cannot be read (not the point's fault).
        """
        data = self.profile(config)
        tokens: int | None
        if self.budget_bytes is None:
            fixed = config.train.micro_batch_tokens
            tokens = fixed if isinstance(fixed, int) else None
            plan = predict(config, micro_batch_tokens=tokens or least_tokens(config, data),
                           data=data)  # fmt: skip
            return Admission(config, plan.required_bytes, comparable(plan), tokens)
        smallest = self.smallest_plan(config)
        fitting = [t for t, budget in self.budgets.items() if smallest.required_bytes <= budget]
        if not fitting:
            return Admission(
                None, smallest.required_bytes, comparable(smallest), None,
                reason=f"needs {gib(smallest.required_bytes)} of {gib(self.budget_bytes)} even at "
                f"the smallest micro-batch ({smallest.shape.tokens} tokens)",
            )  # fmt: skip
        full = load or {}
        chosen = min(fitting, key=lambda name: full.get(name, 0.0))  # the first of equal ones
        tokens = largest_micro_batch(config, self.budgets[chosen], data=data)
        admitted = placed_on(chosen, tokens, config)
        plan = predict_run(admitted, data=data)
        return Admission(
            admitted, plan.required_bytes, comparable(plan), tokens, accelerator_type=chosen
        )

    def smallest_plan(self, config: Config) -> MemoryPlan:
        """The plan at the smallest micro-batch of use: the largest triplet's tree."""
        data = self.profile(config)
        return predict(config, micro_batch_tokens=least_tokens(config, data), data=data)

    def profile(self, config: Config) -> DataProfile:
        """What the run's micro-batches can look like; the data is read once per kind of run."""
        from causal_core.tokens.run_data import load_run_data

        needs = needs_of(config.loss)
        key = json.dumps([config.model.model_dump(), config.data.model_dump(), repr(needs)])
        if key not in self._profiles:
            self._profiles[key] = DataProfile.of(load_run_data(config).train, needs)
        return self._profiles[key]


def placed_on(accelerator_type: str | None, tokens: int | None, config: Config) -> Config:
    """The run on a type of device (None: as it says itself) with a micro-batch (likewise)."""
    placed = config.model_copy(deep=True)
    if accelerator_type is not None:
        placed.resources.accelerator_type = accelerator_type
    if tokens is not None:
        placed.train.micro_batch_tokens = tokens
    return placed


def comparable(plan: MemoryPlan) -> int:
    """The part of a plan that a run's `peak_memory_bytes` measures: what torch allocated on a GPU,
    the whole process on CPU."""
    return plan.peak_bytes if plan.device == "cuda" else plan.required_bytes


def budget_text(budgets: Mapping[str | None, int]) -> str:
    """`24.00 GiB`, or `22.00 GiB on A10G, 79.00 GiB on A100-80G`."""
    return ", ".join(
        gib(budget) + (f" on {name}" if name is not None else "")
        for name, budget in budgets.items()
    )


@dataclass(frozen=True)
class Survey:
    """How much of a space fits a budget."""

    points: int  # looked at: all of a grid, else a sample
    fitting: int
    invalid: int  # points whose values do not go together
    smallest_bytes: int  # the least that any point looked at needs
    smallest: Point


def survey(sweep: SweepConfig, gate: Gate) -> Survey:
    """Plans the points of a grid, or a sample of the space and its smallest corner.

    Raises:
        ConfigError: no point fits; with the nearest change of the config that would.
    """
    space, base = sweep.tune.space, sweep.run
    grid = sweep.tune.searcher == "grid"
    points: list[Point] = (
        list(space.grid())
        if grid
        else [space.point(sweep.tune.seed, number) for number in range(SAMPLE)]
    )
    needed: list[tuple[int, Point]] = []
    invalid = 0
    for point in points:
        try:
            needed.append((gate.smallest_plan(space.apply(base, point)).required_bytes, point))
        except ConfigError:
            invalid += 1
    if not needed:
        raise ConfigError(
            f"none of {len(points)} points of tune.space is a valid config, for example: "
            + _why_invalid(space, base, points)
        )
    smallest_bytes, smallest = min(needed, key=lambda item: item[0])
    budget = gate.budget_bytes
    fitting = sum(budget is None or size <= budget for size, _ in needed)
    if not grid:  # a sample can miss the one corner that fits
        corner = _smallest_corner(space, base, gate, smallest)
        size = gate.smallest_plan(space.apply(base, corner)).required_bytes
        if size < smallest_bytes:
            smallest_bytes, smallest = size, corner
    if budget is not None and smallest_bytes > budget:
        raise ConfigError(
            f"no point of tune.space fits: the smallest one needs {gib(smallest_bytes)} of "
            f"{gib(budget)} at the smallest micro-batch. "
            + _nearest(space.apply(base, smallest), budget, gate)
        )
    return Survey(len(points), fitting, invalid, smallest_bytes, smallest)


def _smallest_corner(space: SearchSpace, base: Config, gate: Gate, start: Point) -> Point:
    """Takes in each dimension the extreme value that needs least, the others as they are."""
    best = dict(start)

    def need(point: Point) -> float:
        try:
            return gate.smallest_plan(space.apply(base, point)).required_bytes
        except ConfigError:
            return float("inf")

    for path, dimension in space.root.items():
        if path in best:
            best = min(({**best, path: value} for value in dimension.corners()), key=need)
    return best


def _nearest(config: Config, budget: int, gate: Gate) -> str:
    found = nearest_fit(config, budget, device=device_of(config), data=gate.profile(config))
    if found is None:
        return "No combination of settings of this model fits: take a smaller model"
    overrides, plan = found
    return f"Nearest that fits (needs {gib(plan.required_bytes)}): {' '.join(overrides)}"


def _why_invalid(space: SearchSpace, base: Config, points: Iterable[Point]) -> str:
    for point in points:
        try:
            space.apply(base, point)
        except ConfigError as error:
            return str(error)
    raise AssertionError("all points are valid")


def slots_by_type(
    config: Config, types: Iterable[str | None], nodes: Sequence[Mapping[str, float]]
) -> dict[str | None, int]:
    """`expected_slots` of the nodes of each accelerator type (None: of all nodes).

    Raises:
        UserError: no node has one of the types, or not even one trial fits there.
    """
    slots = {}
    for name in types:
        here = nodes_with(name, nodes)
        if not here:
            known = ", ".join(accelerator_types(nodes)) or "none"
            raise UserError(
                f"no node of the cluster has the accelerator type {name} (there: {known}): correct "
                "tune.gpu_memory or resources.accelerator_type, or add such a node"
            )
        slots[name] = expected_slots(config, here)
    return slots


def expected_slots(config: Config, nodes: Sequence[Mapping[str, float]]) -> int:
    """Trials that run at a time without starving each other's workers.

    Tune holds nothing for a trial's workers (ray-project/ray#54305): more trials than the nodes
    can hold workers for would each wait for the others.

    Args:
        nodes: Resources of each node (`CPU`, `GPU`).

    Raises:
        UserError: not even one trial fits.
    """
    resources = config.resources
    workers = 0
    for node in nodes:
        here = int(node.get("CPU", 0.0) / resources.cpus_per_worker + 1e-6)
        if resources.gpus_per_worker:
            gpus, share = node.get("GPU", 0.0), resources.gpus_per_worker
            # A worker's fraction lies on one GPU: two GPUs hold two workers of 0.6, not three.
            held = int(gpus) * int(1 / share + 1e-6) if share < 1 else int(gpus / share + 1e-6)
            here = min(here, held)
        workers += here
    slots = workers // resources.max_workers
    if not slots:
        raise UserError(
            f"one trial asks for {resources.max_workers} worker(s) of "
            f"{resources.cpus_per_worker:g} CPU and {resources.gpus_per_worker:g} GPU, and "
            f"{len(nodes)} node(s) hold {workers}"
        )
    return slots
