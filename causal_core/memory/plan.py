"""What a run will need on one worker's device: by component, by phase, before anything is loaded.

Figures are *allocated* bytes: what torch's allocator has handed out, `max_memory_allocated` on a
GPU. What the allocator *reserves* from the driver is larger by its rounding and fragmentation (see
`causal_core.memory.allocator`), and the CUDA context lies outside of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch

from causal_core.config import Config
from causal_core.memory.architectures import Architecture
from causal_core.memory.shapes import BatchShape, DataProfile, assumed_shape
from causal_core.memory.tracker import COMPONENTS, Peak, Place
from causal_core.trees.packing import Packing, preferred_packing

MIB, GIB = 2**20, 2**30

PHASES = ("load", "forward", "backward", "optimizer", "resume", "evaluation")

# A CUDA context with its kernels loaded, outside of torch's allocator: assumed, it differs by
# driver and card.
CUDA_CONTEXT = GIB // 2
# torch allocates it for cuBLAS at the first matrix product (two buffers of 4 MiB and small ones;
# Hopper takes 32 MiB); with `train.deterministic` eight of 4 MiB.
CUBLAS_WORKSPACE = 8519680
_WORKSPACE = {False: CUBLAS_WORKSPACE, True: 32 * MIB}
# A Python process with torch, transformers and peft imported.
CPU_PROCESS = 600 * MIB

Device = Literal["cuda", "cpu"]


@dataclass(frozen=True)
class PhasePlan:
    """The largest allocation while one phase runs."""

    peak_bytes: int
    components: dict[str, int]


@dataclass(frozen=True)
class MemoryPlan:
    """The memory one worker needs for a micro-batch of `shape`."""

    model: str
    device: Device
    shape: BatchShape
    world_size: int
    phases: dict[str, PhasePlan]
    outside_bytes: int  # of the process, but not of torch's allocator

    @property
    def phase(self) -> str:
        """The phase in which the peak lies."""
        return max(self.phases, key=lambda name: self.phases[name].peak_bytes)

    @property
    def peak_bytes(self) -> int:
        """Peak of *allocated* memory over all phases."""
        return self.phases[self.phase].peak_bytes

    @property
    def step_bytes(self) -> int:
        """Peak of *allocated* memory of optimizer steps alone."""
        return max(self.phases[name].peak_bytes for name in ("forward", "backward", "optimizer"))

    @property
    def components(self) -> dict[str, int]:
        """What the peak consists of, in bytes."""
        return self.phases[self.phase].components

    @property
    def required_bytes(self) -> int:
        """What the device must have: allocated peak and what lies outside of the allocator."""
        return self.peak_bytes + self.outside_bytes

    def to_dict(self) -> dict[str, Any]:
        """Plain values; bytes are allocated unless the key says otherwise."""
        return {
            "model": self.model,
            "device": self.device,
            "world_size": self.world_size,
            "shape": {**asdict(self.shape), "labels": dict(self.shape.labels)},
            "peak_bytes": self.peak_bytes,
            "peak_phase": self.phase,
            "step_bytes": self.step_bytes,
            "outside_bytes": self.outside_bytes,
            "required_bytes": self.required_bytes,
            "components": self.components,
            "phases": {name: asdict(phase) for name, phase in self.phases.items()},
        }


def device_of(config: Config) -> Device:
    """The kind of device that the config's workers train on."""
    return "cuda" if config.resources.gpus_per_worker > 0 else "cpu"


def predict(
    config: Config,
    *,
    micro_batch_tokens: int | None = None,
    world_size: int | None = None,
    device: Device | None = None,
    shape: BatchShape | None = None,
    data: DataProfile | None = None,
    packing: Packing | None = None,
    micro_batches: int = 2,
) -> MemoryPlan:
    """Memory of one worker, from the model's architecture and the project's own step.

    No weights, no GPU, no data and, for a local or known model, no network. Two seconds for a
    new shape; a known one is looked up, also by later processes.

    Args:
        micro_batch_tokens: Tree nodes of a micro-batch, padding included; default: the config's,
            unless that is `auto`.
        world_size: Workers; default: the config's most.
        device: "cuda" or "cpu"; default: what the config's workers train on.
        shape: Sizes of a real micro-batch; default: the worst of that many tokens.
        data: What real micro-batches can look like, where data is known.
        packing: Their layout; default: the device's.
        micro_batches: Of an optimizer step. From two on, gradients of the first are there while
            the next one runs.

    Raises:
        ModelError: the architecture cannot be read or has no such target modules.
    """
    device = device or device_of(config)
    workers = world_size or max(1, config.resources.max_workers)
    if shape is None:
        tokens = micro_batch_tokens or config.train.micro_batch_tokens
        if tokens == "auto":
            raise ValueError("train.micro_batch_tokens=auto is resolved first: see `predict_run`")
        packing = packing or preferred_packing(torch.device(device))
        shape = assumed_shape(config, tokens, data, packing)
    key = (_key(config), device, workers, shape, micro_batches)
    known = _plans.get(key)
    if known is None:
        if len(_plans) >= _MOST_PLANS:
            _plans.clear()
        known = _plans[key] = _predict(config, device, workers, shape, micro_batches)
    return known


_plans: dict[Any, MemoryPlan] = {}
_MOST_PLANS = 4096


def _key(config: Config) -> tuple[Any, ...]:
    """Everything of a config that memory depends on, besides the micro-batch."""
    model = config.model
    return (
        model.name_or_path, model.revision, *_of_one_worker(config),
        config.train.deterministic, config.engine, repr(config.deepspeed),
    )  # fmt: skip


def _of_one_worker(config: Config) -> tuple[Any, ...]:
    """What changes the memory of a worker that is alone, besides its architecture."""
    model, lora, train, loss = config.model, config.lora, config.train, config.loss
    return (
        model.quantization, model.dtype, lora.rank, lora.dropout > 0, str(lora.target_modules),
        tuple(weight > 0 for weight in loss.weights().values()), loss.contrastive,
        train.optimizer, train.gradient_checkpointing, config.frozen_products() == "float32",
    )  # fmt: skip


def _predict(
    config: Config, device: Device, workers: int, shape: BatchShape, micro_batches: int
) -> MemoryPlan:
    architecture = Architecture(config.model, config.data.cache_dir)
    phases = _by_phase(_peaks(config, architecture, device, shape, micro_batches))
    largest, gathered = _sizes(architecture)
    phases["load"] = _load(config, phases["load"], largest)
    phases["resume"] = _resume(phases, device)
    plan = MemoryPlan(
        model=config.model.name_or_path,
        device=device,
        shape=shape,
        world_size=workers,
        phases={name: phases[name] for name in PHASES},
        outside_bytes=CUDA_CONTEXT if device == "cuda" else CPU_PROCESS,
    )
    plan = _shared_among_workers(config, plan, gathered)
    if config.train.optimizer == "paged_adamw_8bit" and device == "cuda":
        plan = _without(plan, "optimizer_state")
    if device == "cuda":
        workspace = _WORKSPACE[config.train.deterministic]
        plan = _with_constant(plan, workspace, ("forward", "backward", "optimizer"))
    return plan


def _peaks(
    config: Config,
    architecture: Architecture,
    device: Device,
    shape: BatchShape,
    micro_batches: int,
) -> dict[Place, Peak]:
    """The peaks of one worker alone, traced once for all engines and numbers of workers."""

    def trace() -> list[Any]:
        from causal_core.memory.trace import SHORT, Trace, extrapolate, trace_step

        described = architecture.described
        layers = described.get_text_config().num_hidden_layers

        def traced(count: int) -> Trace:
            return trace_step(config, described, shape, device, count, micro_batches)

        if layers <= SHORT + 1:
            peaks = traced(layers).peaks
        else:
            peaks = extrapolate(traced(SHORT), traced(SHORT + 1), layers)
        return [[*place, peak.total, peak.by_component] for place, peak in peaks.items()]

    of = ["peaks", *_of_one_worker(config), device, asdict(shape), micro_batches]
    return architecture.remembered(of, trace, _read_peaks)


def _read_peaks(found: Any) -> dict[Place, Peak]:
    return {
        (str(phase), int(layer)): Peak(int(total), tuple(map(int, parts)))
        for phase, layer, total, parts in found
    }


def _by_phase(peaks: Mapping[Place, Peak]) -> dict[str, PhasePlan]:
    highest: dict[str, Peak] = {}
    for (phase, _), peak in peaks.items():
        if phase not in highest or peak.total > highest[phase].total:
            highest[phase] = peak
    return {
        phase: PhasePlan(peak.total, dict(zip(COMPONENTS, peak.by_component, strict=True)))
        for phase, peak in highest.items()
    }


def _load(config: Config, static: PhasePlan, largest: int) -> PhasePlan:
    """Quantising a weight needs it once in the checkpoint's 16 bits beside what is loaded."""
    extra = 2 * largest if config.model.quantization == "nf4" else 0
    return _added(static, "workspace", extra)


def _resume(phases: Mapping[str, PhasePlan], device: Device) -> PhasePlan:
    """A restored worker holds what is static and the optimizer's state; on a CPU device the file's
    copies of adapter, head and state lie in the same memory."""
    static = phases["evaluation"].components
    kept = {name: static[name] if name in _STATIC else 0 for name in COMPONENTS}
    if device == "cpu":
        kept["workspace"] = kept["adapter"] + kept["projection"] + kept["optimizer_state"]
    return PhasePlan(sum(kept.values()), kept)


_STATIC = ("base_weights", "quantization_state", "adapter", "projection", "optimizer_state")


def _sizes(architecture: Architecture) -> tuple[int, int]:
    """`_largest_weight` and `_gathered` of a model."""

    def sizes() -> list[int]:
        return [_largest_weight(architecture.described), _gathered(architecture.described)]

    return architecture.remembered(["sizes"], sizes, lambda found: (int(found[0]), int(found[1])))


def _largest_weight(architecture: Any) -> int:
    """Elements of the largest weight of a decoder layer."""
    text = architecture.get_text_config()
    return int(text.hidden_size * max(text.hidden_size, getattr(text, "intermediate_size", 0) or 0))


def _gathered(architecture: Any) -> int:
    """Elements that ZeRO-3 gathers at most: the layer in use (or the output embedding, once for
    each chunk of labels) and the layer fetched ahead."""
    text = architecture.get_text_config()
    layer = 7 * _largest_weight(architecture)
    return max(layer, int(text.vocab_size * text.hidden_size)) + layer


def _shared_among_workers(config: Config, plan: MemoryPlan, gathered: int) -> MemoryPlan:
    """What engines of several workers change.

    DDP keeps its gradient buckets, which the gradients are views of, through the whole step. ZeRO
    (Rajbhandari et al., 2020) divides optimizer state (stage 1), gradients (2) and parameters (3)
    by the workers; it reduces through buckets, and stage 3 gathers a layer at a time.
    """
    workers, phases = plan.world_size, dict(plan.phases)
    trained = phases["load"].components["adapter"] + phases["load"].components["projection"]
    if config.engine in ("auto", "ddp") and workers > 1:
        for name in ("forward", "backward", "optimizer", "evaluation"):
            missing = trained - phases[name].components["gradients"]
            phases[name] = _added(phases[name], "gradients", max(0, missing))
        return replace(plan, phases=phases)
    if config.engine != "deepspeed":
        return plan
    stage, section = config.deepspeed.zero_stage, config.deepspeed
    shared = {"optimizer_state": 1.0 / workers}
    if section.offload_optimizer:
        shared["optimizer_state"] = 0.0
    if stage >= _ZERO_GRADIENTS:
        shared["gradients"] = 1.0 / workers
    if stage == _ZERO_PARAMETERS:
        shared.update(base_weights=1.0 / workers, adapter=1.0 / workers, projection=1.0 / workers)
    width = 2 if config.model.dtype == "bfloat16" else 4
    buffers = 2 * 4 * section.reduce_bucket_size  # one is filled while the other is reduced
    if stage == _ZERO_PARAMETERS:
        buffers += gathered * width
    for name, phase in phases.items():
        components = {
            part: round(size * shared.get(part, 1.0)) for part, size in phase.components.items()
        }
        if name in ("forward", "backward", "optimizer"):
            components["workspace"] += buffers
        phases[name] = PhasePlan(sum(components.values()), components)
    return replace(plan, phases=phases)


_ZERO_GRADIENTS, _ZERO_PARAMETERS = 2, 3


def _added(phase: PhasePlan, component: str, extra: int) -> PhasePlan:
    components = {**phase.components, component: phase.components[component] + extra}
    return PhasePlan(phase.peak_bytes + extra, components)


def _without(plan: MemoryPlan, component: str) -> MemoryPlan:
    phases = {
        name: _added(phase, component, -phase.components[component])
        for name, phase in plan.phases.items()
    }
    return replace(plan, phases=phases)


def _with_constant(plan: MemoryPlan, extra: int, names: tuple[str, ...]) -> MemoryPlan:
    phases = {
        name: _added(phase, "workspace", extra) if name in names else phase
        for name, phase in plan.phases.items()
    }
    return replace(plan, phases=phases)


def reserved_bytes(config: Config, plan: MemoryPlan) -> int:
    """What torch's CUDA caching allocator would *reserve* for the planned steps.

    A trace of all layers, replayed through the allocator's rules: seconds for a 7B model. For rows
    of one fixed shape; lengths that vary fragment more.
    """
    key = ("reserved", _key(config), plan.shape)
    if key not in _reserved:
        architecture = Architecture(config.model, config.data.cache_dir)

        def trace() -> int:
            from causal_core.memory.allocator import replay
            from causal_core.memory.trace import trace_step

            described = architecture.described
            layers = described.get_text_config().num_hidden_layers
            found = trace_step(config, described, plan.shape, plan.device, layers, with_events=True)
            return replay(found.events or ()).peak_reserved

        of = ["reserved", *_of_one_worker(config), plan.device, asdict(plan.shape)]
        _reserved[key] = architecture.remembered(of, trace, int)
    return _reserved[key] + _WORKSPACE[config.train.deterministic]


_reserved: dict[Any, int] = {}


@dataclass(frozen=True)
class Calibration:
    """What a rehearsed step took beside what was planned for it, in bytes."""

    predicted_bytes: int  # allocated, of the rehearsed micro-batches
    measured_bytes: int  # allocated
    outside_bytes: int  # of the device, outside of torch's allocator

    @property
    def constant_bytes(self) -> int:
        """What every plan of this run lacks (below 0: has too much)."""
        return self.measured_bytes - self.predicted_bytes

    def required_bytes(self, plan: MemoryPlan) -> int:
        """What the device must have for a plan, by this measurement."""
        return plan.peak_bytes + self.constant_bytes + self.outside_bytes

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "constant_bytes": self.constant_bytes}
