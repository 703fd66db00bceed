"""One optimizer step of this project's own code, traced on the meta device.

The model is built from its architecture alone (no weights, no GPU), with the project's adapter,
head, loss, step and optimizer. Decoder layers are alike, so two short models, of two and of three
layers, tell what every further layer adds: the peak at each place of the step is linear in the
number of layers, and the peak of the step is the largest of them.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from causal_core.config import Config, TrainSection
from causal_core.device import dtype_of
from causal_core.engines.base import LossFunction
from causal_core.engines.plain import PlainEngine
from causal_core.errors import ModelError
from causal_core.loss.objective import Denominators
from causal_core.memory.kernels import DeviceKernels, held_inside
from causal_core.memory.shapes import BatchShape
from causal_core.memory.tracker import Peak, Place, StorageTracker
from causal_core.model import matmul
from causal_core.model.attention import attention_windows
from causal_core.model.causal_model import (
    CausalModel,
    CausalOutput,
    build_model,
    check_layer_types,
)
from causal_core.pretrained.loading import base_without_weights
from causal_core.quantised import bitsandbytes
from causal_core.step.train_step import TrainStep
from causal_core.tokens.triplet import InjectionTokens, TripletTokens
from causal_core.trees.packing import MicroBatch
from causal_core.trees.prefix_tree import TreeBatch

SHORT, LONG = 2, 3  # layers of the two models that are traced
CUDA_GRANULARITY = 512  # bytes the CUDA allocator rounds to

_TOKENS = TripletTokens("traced", [0], [0], [0], [0], (InjectionTokens([0], [0], [], [0]),))


@dataclass(frozen=True)
class Trace:
    """Peaks by place of a model of `layers` layers, allocated bytes."""

    layers: int
    peaks: dict[Place, Peak]
    events: list[tuple[int, int]] | None


def trace_step(
    config: Config,
    architecture: Any,
    shape: BatchShape,
    device: str,
    layers: int,
    micro_batches: int = 2,
    with_events: bool = False,
) -> Trace:
    """Traces load, two optimizer steps and a validation forward of a model of `layers` layers.

    Args:
        device: "cuda" or "cpu": whose kernels and rounding are meant.
        micro_batches: Of the second step; the first has one (it makes the optimizer's state).
    """
    on_gpu = device == "cuda"
    # `auto` is planned as if it took bfloat16, which needs room for what is rounded.
    in_bfloat16 = config.frozen_products() != "float32"
    events: list[tuple[int, int]] | None = [] if with_events else None
    tracker = StorageTracker(
        "meta", CUDA_GRANULARITY if on_gpu else 1, events=events, held_inside=held_inside
    )
    with _quiet():
        model = meta_model(config, architecture, layers)
    _count_parameters(model, tracker)
    tracker.at("load")
    engine = _TracedEngine(model, config.train, tracker, on_gpu)
    batch = shape.meta_batch()
    marks = _Marks(tracker, model)
    kernels = DeviceKernels(device, tracker)
    for layer in _layers(model):
        for module in layer.children():
            kernels.inside(module)
    text = architecture.get_text_config()
    kinds = len(attention_windows(text, longest_path=shape.nodes))
    block_masks: list[Tensor] = []  # they live as long as their micro-batch: to the step's end

    def begin(_: TreeBatch) -> None:
        dtype = dtype_of(config.model.dtype)
        before = tracker.making("attention_masks")
        block_masks.append(torch.empty(kinds * shape.block_scores, dtype=dtype, device="meta"))
        tracker.making(before)

    meta = torch.device("meta")
    step = _TracedStep(engine, config.loss, config.train, meta, shape.tokens, begin)
    step.micro_batch = MicroBatch(batch, [0] * shape.triplets)
    try:
        with tracker, matmul.using(matmul.in_use(), in_bfloat16):
            for tensor in _tensors(batch):
                tracker.assign(tensor, "inputs")
            for count in (1, micro_batches):
                step.count = count
                step.run([_TOKENS], Denominators.of([_TOKENS]), 1e-4, _TOKENS)
                block_masks.clear()
                for state in engine.optimizer.state.values():
                    for value in state.values():
                        if isinstance(value, Tensor):
                            tracker.assign(value, "optimizer_state")
            tracker.at("evaluation")
            tracker.making("activations")
            marks.enabled = False
            _validation_forward(model, batch)
    except NotImplementedError as error:  # of torch: a tensor without data was looked into
        name = type(model.peft_model.get_base_model()).__name__
        raise ModelError(
            f"the memory of {name} cannot be planned without its weights: its layers look at "
            "values while they compute (experts that are chosen one by one, say). Use one of the "
            "architectures in docs/models.md"
        ) from error
    finally:
        marks.remove()
    return Trace(layers, dict(tracker.peaks), events)


def extrapolate(short: Trace, long: Trace, layers: int) -> dict[Place, Peak]:
    """Peaks by place for `layers` layers from traces of `SHORT` and `LONG`.

    Only the first and the last layer are kept: at a middle one the total lies between them.
    """
    peaks: dict[Place, Peak] = {}
    for place in long.peaks:
        phase, layer = place
        if layer in (-1, 0):
            low, high, name = short.peaks[place], long.peaks[place], place
        elif layer == LONG - 1:
            low, high = short.peaks[(phase, SHORT - 1)], long.peaks[place]
            name = (phase, layers - 1)
        else:
            continue
        scale = (layers - SHORT) / (LONG - SHORT)
        peaks[name] = Peak(
            round(low.total + (high.total - low.total) * scale),
            tuple(
                round(a + (b - a) * scale)
                for a, b in zip(low.by_component, high.by_component, strict=True)
            ),
        )
    return peaks


def meta_model(config: Config, architecture: Any, layers: int) -> CausalModel:
    """Base of `layers` layers + adapter + head on the meta device."""
    described = copy.deepcopy(architecture)
    text = described.get_text_config()
    check_layer_types(described)
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = _some_of_each(text.layer_types)[:layers]
    base = base_without_weights(described, config.model)
    if config.model.quantization == "nf4":
        quantize_nf4(base, dtype_of(config.model.dtype))
    checkpointing = config.train.gradient_checkpointing
    with torch.device("meta"):
        return build_model(base, config.lora, config.run.seed, checkpointing)


def _layers(model: CausalModel) -> nn.ModuleList:
    decoder = model.peft_model.get_base_model().get_decoder()
    if not isinstance(layers := getattr(decoder, "layers", None), nn.ModuleList):
        raise ModelError(
            f"the memory of {type(decoder).__name__} cannot be planned, because it does not keep "
            "its layers in a list `layers`: use one of the architectures in docs/models.md"
        )
    return layers


def _some_of_each(kinds: list[str]) -> list[str]:
    """One layer of each kind first: masks are kept for each, and few layers are traced."""
    return [*dict.fromkeys(kinds), *kinds]


def quantize_nf4(base: nn.Module, compute: torch.dtype) -> None:
    """Replaces linear modules by 4-bit ones as the loader does: all but the output embeddings.

    `Params4bit.to("meta")` would leave the weight as it is, so the quantisation is asked for.
    """
    bnb = bitsandbytes()

    # The library keeps this table for the whole process, on whatever device first asked for it.
    bnb.functional.name2qmap.setdefault("dynamic", bnb.functional.create_dynamic_map())
    head = base.get_output_embeddings()  # type: ignore[operator]
    for name, module in list(base.named_modules()):
        if not isinstance(module, nn.Linear) or module is head:
            continue
        parent, _, child = name.rpartition(".")
        quantized = bnb.nn.Linear4bit(
            module.in_features,
            module.out_features,
            bias=module.bias is not None,
            compute_dtype=compute,
            compress_statistics=True,
            quant_type="nf4",
            device="meta",
        )
        quantized.weight = bnb.nn.Params4bit(
            module.weight.data,
            requires_grad=False,
            compress_statistics=True,
            quant_type="nf4",
            module=quantized,
        )._quantize("meta")
        if module.bias is not None:
            quantized.bias = module.bias
        setattr(base.get_submodule(parent), child, quantized)
    base.is_loaded_in_4bit = True  # type: ignore[assignment]
    base.is_quantized = True  # type: ignore[assignment]


def _count_parameters(model: CausalModel, tracker: StorageTracker) -> None:
    for name, parameter in model.named_parameters():
        if name.startswith("projection."):
            component = "projection"
        else:
            component = "adapter" if parameter.requires_grad else "base_weights"
        tracker.assign(parameter.data, component)
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            nested = [state.state2.absmax, state.state2.code] if state.nested else []
            for tensor in [state.absmax, state.code, state.offset, *nested]:
                if isinstance(tensor, Tensor):
                    tracker.assign(tensor, "quantization_state")
    for buffer in model.buffers():
        tracker.assign(buffer, "base_weights")


class _TracedEngine(PlainEngine):
    """The plain engine, with marks where the forward and the last backward end."""

    def __init__(
        self, model: CausalModel, train: TrainSection, tracker: StorageTracker, on_gpu: bool
    ) -> None:
        if train.optimizer == "paged_adamw_8bit":  # the same state; where it lies is known later
            train = train.model_copy(update={"optimizer": "adamw_8bit"})
        super().__init__(model, train, torch.device("meta"))
        self._tracker = tracker
        if on_gpu and train.optimizer == "adamw":
            for group in self.optimizer.param_groups:
                # torch's choice for CUDA parameters, which it does not make for meta ones.
                if group.get("foreach") is None and not group.get("fused"):
                    group["foreach"] = True

    def accumulate(self, batch: TreeBatch, loss_of: LossFunction, last: bool) -> None:
        def marked(output: CausalOutput, batch: TreeBatch) -> Tensor:
            value = loss_of(output, batch)
            self._tracker.at("backward")
            self._tracker.making("activations")
            return value

        self._tracker.at("forward")
        self._tracker.making("activations")
        super().accumulate(batch, marked, last)
        if last:
            self._tracker.at("optimizer")
            self._tracker.making("workspace")

    def sum_over_workers(self, values: Tensor) -> Tensor:
        # A meta tensor has no values; any finite ones take the ordinary path.
        return torch.ones(values.shape, dtype=values.dtype)


class _TracedStep(TrainStep):
    """The project's step over micro-batches of a given shape."""

    micro_batch: MicroBatch
    count = 1

    def cut(self, triplets: Any) -> list[MicroBatch]:
        return [self.micro_batch] * self.count


class _Marks:
    """Hooks that tell the tracker where the step is."""

    def __init__(self, tracker: StorageTracker, model: CausalModel) -> None:
        self._tracker = tracker
        self.enabled = True
        base = model.peft_model.get_base_model()
        layers = _layers(model)
        self._handles: list[Any] = []
        for number, layer in enumerate(layers):
            self._handles.append(layer.register_forward_pre_hook(self._enter(number)))
            self._handles.append(layer.register_forward_hook(self._leave(number, len(layers))))
        head = base.get_output_embeddings()
        self._handles.append(head.register_forward_pre_hook(self._logits))
        for parameter in model.trainable_parameters().values():
            self._handles.append(parameter.register_post_accumulate_grad_hook(self._gradient))

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _enter(self, number: int) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            if self.enabled and self._tracker.place[0] == "forward":
                self._tracker.at("forward", number)

        return hook

    def _leave(self, number: int, layers: int) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not self.enabled or self._tracker.place[0] != "forward":
                return
            hidden = output if isinstance(output, Tensor) else output[0]
            if hidden.requires_grad:
                hidden.register_hook(lambda _: self._tracker.at("backward", number))
            if number == layers - 1:
                self._tracker.at("forward")

        return hook

    def _logits(self, module: nn.Module, inputs: Any) -> None:
        if self.enabled:
            self._tracker.making("label_logits")

    def _gradient(self, parameter: nn.Parameter) -> None:
        if parameter.grad is not None:
            self._tracker.assign(parameter.grad, "gradients")


@torch.no_grad()
def _validation_forward(model: CausalModel, batch: TreeBatch) -> None:
    """What scoring a micro-batch holds: the forward, float32 logits of some labels at a time."""
    from causal_core.device import at_least_float32

    model.eval()
    output = model(batch)
    for chunk in batch.labels:
        logits = at_least_float32(model.logits(output.label_hidden[chunk.slots]))
        for group in chunk.groups.values():
            chosen = logits[group.position]
            _ = chosen.gather(1, group.target[:, None])[:, 0] - chosen.logsumexp(-1)
            _ = chosen.argmax(-1)


def _tensors(batch: TreeBatch) -> list[Tensor]:
    found = [value for value in vars(batch).values() if isinstance(value, Tensor)]
    for chunk in batch.labels:
        found.append(chunk.slots)
        for group in chunk.groups.values():
            found += [group.position, group.target, group.owner]
    return found


class _quiet:
    """Silences libraries that warn about models without weights."""

    def __enter__(self) -> None:
        self._loggers = [logging.getLogger(name) for name in ("transformers", "bitsandbytes")]
        self._levels = [logger.level for logger in self._loggers]
        for logger in self._loggers:
            logger.setLevel(logging.ERROR)

    def __exit__(self, *error: object) -> None:
        for logger, level in zip(self._loggers, self._levels, strict=True):
            logger.setLevel(level)
