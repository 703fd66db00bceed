"""The parts of first contact with a GPU that are measured here, each in a process of its own.

    python -m benchmarks.gpu_parts PART FILE [--tiny]

`machine` is the device and what it computes and copies; `step-1B` (3B, 8B) the optimizer step of a
Llama of that shape with random 4-bit weights, in every layout; `profile` twenty of its steps;
`resume` an interrupted run beside a straight one. A part writes FILE anew after each thing that it
measured, so that what it had is there when it fails.
"""

from __future__ import annotations

import argparse
import copy
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_device import Part, machine, wait_for
from causal_core.config import Config
from causal_core.config_file import parse_config
from causal_core.device import device_memory_bytes, dtype_of, prepare_device
from causal_core.engines.base import Engine
from causal_core.engines.build import build_engine
from causal_core.errors import RunFailedError
from causal_core.loss.objective import Denominators, needs_of
from causal_core.memory import predict
from causal_core.memory.architectures import architecture_of
from causal_core.memory.measure import MemoryMeter
from causal_core.model.causal_model import CausalModel, build_model
from causal_core.model.compiled import compile_layers
from causal_core.model.layout import packing_for
from causal_core.step.train_step import TrainStep
from causal_core.tokens.triplet import InjectionTokens, TripletTokens
from causal_core.trees.packing import FLAT, ROWS, Packing, cut_micro_batches
from causal_core.trees.prefix_tree import TreeBatch

SIZES = {
    "1B": "meta-llama/Llama-3.2-1B",
    "3B": "meta-llama/Llama-3.2-3B",
    "8B": "meta-llama/Llama-3.1-8B",
}
# Of a size under --tiny: hidden size and layers.
_TINY = {"1B": (32, 2), "3B": (48, 2), "8B": (64, 3)}
_WARM, _TIMED, _TIMED_SECONDS = 2, 5, 15.0
_PROFILED = 20


def step(part: Part, size: str) -> None:
    """Optimizer steps of one size: rows, flat trees, flat trees in compiled layers."""
    part.keep(size=size)
    if not _fits(part, config_of(part, size)):
        return
    job = _Job.of(part, size)
    part.keep(**job.about())
    flat = packing_for(job.model, part.device)
    _kept(part, "rows", lambda: job.measured(ROWS))
    if flat.flat:
        _kept(part, "flat", lambda: job.measured(flat))
    else:
        part.keep(flat={"skipped": "FlexAttention does not serve this model here, see the log"})
    if part.device.type == "cpu":
        part.keep(compiled={"skipped": "layers are compiled on a GPU alone (train.compile)"})
    else:
        compile_layers(job.model)
        _kept(part, "compiled", lambda: job.measured(flat))
    failed = [name for name, found in part.found.items() if "failed" in _dict(found)]
    if failed:
        raise RunFailedError(f"steps in these layouts: {', '.join(failed)}")


def _fits(part: Part, config: Config) -> bool:
    """Says so where the plan is beyond the device: before anything is there."""
    plan, room = predict(config), device_memory_bytes(part.device)
    part.keep(planned_bytes=plan.required_bytes, device_bytes=room)
    if plan.required_bytes > room:
        needed, there = (amount / 2**30 for amount in (plan.required_bytes, room))
        part.keep(skipped=f"planned {needed:.1f} GiB, the device has {there:.1f} GiB")
    return plan.required_bytes <= room


def _kept(part: Part, name: str, measure: Callable[[], dict[str, Any]]) -> None:
    """Keeps a measurement, or why there is none: others are still to be made."""
    try:
        part.keep(**{name: measure()})
    except Exception as error:  # noqa: BLE001 - whatever a kernel, a compiler or a driver raises
        traceback.print_exc()  # into the log
        first = (str(error).strip().splitlines() or [""])[0]
        part.keep(**{name: {"failed": f"{type(error).__name__}: {first[:200]}"}})


def _dict(found: Any) -> dict[str, Any]:
    return found if isinstance(found, dict) else {}


def profiled(part: Part) -> None:
    """Twenty steps of the smallest size: which kernels take the time."""
    job = _Job.of(part, "1B")
    part.keep(size="1B", **job.about())
    engine = build_engine(job.config, job.model, part.device)
    run = job.steps(engine, packing_for(job.model, part.device))
    run()
    activities = [ProfilerActivity.CPU]
    if part.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    steps = 2 if part.tiny else _PROFILED
    begin = time.perf_counter()
    with profile(activities=activities) as recording:
        for _ in range(steps):
            run()
        wait_for(part.device)
    seconds = time.perf_counter() - begin
    on_gpu = part.device.type == "cuda"
    # On a GPU its kernels alone: the time of one is that of the operation which launched it, too.
    events = [e for e in recording.key_averages() if (e.device_type == DeviceType.CUDA) is on_gpu]
    times = {
        e.key: (e.self_device_time_total if on_gpu else e.self_cpu_time_total) / 1e6 for e in events
    }
    order = sorted(times, key=lambda key: -times[key])[:25]
    part.keep(
        steps=steps,
        seconds=seconds,
        busy_seconds=sum(times.values()),
        kernels=sum(e.count for e in events if times[e.key] > 0) / steps,
        longest=[{"name": key[:120], "seconds": times[key]} for key in order],
    )
    recording.export_chrome_trace(str(part.file.with_name("trace.json.gz")))


def resume(part: Part) -> None:
    """`causal verify-resume` on a small run as it is on the device: 4-bit, bfloat16, and on a GPU
    the paged 8-bit optimizer."""
    from ray_jobs.verify_resume import verify_resume
    from tests.tiny_run import tiny_config, write_tiny_data, write_tiny_model

    place = part.file.parent
    sizes = {"train": 24, "validation": 4, "test_seen": 4, "test_novel": 4}
    workers = 0 if part.tiny else 1
    tree = tiny_config(
        write_tiny_model(place / "model", hidden=64),
        write_tiny_data(place / "data", sizes),
        place / "run",
        resources={"workers": workers, "gpus_per_worker": workers},
        train={"optimizer": "adamw" if part.tiny else "paged_adamw_8bit"},
    ).model_dump(mode="json")
    tree["model"] |= {"quantization": "nf4", "dtype": "bfloat16"}
    compared = verify_resume(parse_config(tree), steps=4)
    part.keep(compared=[{**asdict(each), "same": each.same} for each in compared])
    if not all(each.same for each in compared):
        raise RunFailedError("the interrupted run ended in another state")


@dataclass
class _Job:
    """A model of one size, and optimizer steps over triplets of random tokens."""

    config: Config
    model: CausalModel
    triplets: list[TripletTokens]
    device: torch.device

    @classmethod
    def of(cls, part: Part, size: str) -> _Job:
        config = config_of(part, size)
        prepare_device(part.device, threads=None)
        base = random_base(architecture_of(config.model), config, part.device)
        model = build_model(base, config.lora, 0, config.train.gradient_checkpointing)
        return cls(config, model.to(part.device), _triplets(part, base), part.device)

    def about(self) -> dict[str, Any]:
        """What is the same for all layouts."""
        needs = needs_of(self.config.loss)
        (whole,) = cut_micro_batches(self.triplets, needs, 10**9, FLAT)
        return {
            "triplets": len(self.triplets),
            "nodes": whole.batch.nodes,
            "path_tokens": whole.batch.path_tokens,
            "useful_flops": self._useful_flops(whole.batch),
            "parameters_of_4_bit": self._linear(),
        }

    def steps(
        self,
        engine: Engine,
        packing: Packing,
        on_micro_batch: Callable[[TreeBatch], None] | None = None,
    ) -> Callable[[], float]:
        """What runs an optimizer step in a layout and returns the loss."""
        runner = TrainStep(
            engine, self.config.loss, self.config.train, self.device,
            on_micro_batch=on_micro_batch, packing=packing,
        )  # fmt: skip
        counts = Denominators.of(self.triplets)
        return lambda: runner.run(self.triplets, counts, 1e-4, self.triplets[0]).loss

    def measured(self, packing: Packing) -> dict[str, Any]:
        """Seconds of steps and memory in one layout."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        engine = build_engine(self.config, self.model, self.device)
        meter = MemoryMeter(self.config, engine, self.device)
        run, losses, seconds = self.steps(engine, packing, meter.saw), [], []
        start = time.perf_counter()
        for number in range(_WARM + _TIMED):
            if number > _WARM and time.perf_counter() - start > _TIMED_SECONDS:
                break
            begin = time.perf_counter()
            with meter.step():
                losses.append(run())  # reads a number of the device: all of the step is done
            if number < _WARM:
                start = time.perf_counter()
            else:
                seconds.append(time.perf_counter() - begin)
        return {"seconds": seconds, "losses": losses, "memory": meter.summary()}

    def _linear(self) -> int:
        import bitsandbytes as bnb

        kinds = (m for m in self.model.modules() if isinstance(m, bnb.nn.Linear4bit))
        return sum(m.in_features * m.out_features for m in kinds)

    def _useful_flops(self, batch: Any) -> float:
        """As `benchmarks.step.useful_flops` counts them: nothing that is computed again."""
        config = self.model.peft_model.get_base_model().config
        trained = self.model.trainable_parameters().items()
        lora = sum(p.numel() for n, p in trained if "lora_" in n)
        width = config.num_attention_heads * config.head_dim
        scores = int((batch.position_ids + 1).sum())
        return (
            (4.0 * self._linear() + 6.0 * lora) * batch.nodes
            + 12.0 * width * scores * config.num_hidden_layers
            + 4.0 * config.vocab_size * config.hidden_size * len(batch.label_index)
        )


def config_of(part: Part, size: str) -> Config:
    name = SIZES[size]
    if part.tiny:
        from transformers import LlamaConfig

        hidden, layers = _TINY[size]
        place = part.file.with_name(f"shape-{size}")
        LlamaConfig(
            vocab_size=256, hidden_size=hidden, intermediate_size=2 * hidden,
            num_hidden_layers=layers, num_attention_heads=2, num_key_value_heads=1,
            head_dim=hidden // 2, max_position_embeddings=2048,
        ).save_pretrained(place)  # fmt: skip
        name = str(place)
    return parse_config(
        {
            "model": {"name_or_path": name, "quantization": "nf4", "dtype": "bfloat16"},
            "lora": {"dropout": 0.0},
            "train": {
                "micro_batch_tokens": 256 if part.tiny else 4096,
                "gradient_checkpointing": True,
                "optimizer": "adamw" if part.tiny else "paged_adamw_8bit",
            },
            "resources": {"workers": 1, "gpus_per_worker": 0 if part.tiny else 1},
        }
    )


def random_base(architecture: Any, config: Config, device: torch.device) -> Any:
    """A base of random weights in NF4, built on the device layer by layer: at most one layer is
    there unquantised, and nothing is downloaded."""
    from transformers import AutoModelForCausalLM
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    dtype, described = dtype_of(config.model.dtype), copy.deepcopy(architecture)
    layers, described.num_hidden_layers = architecture.num_hidden_layers, 0
    torch.manual_seed(0)
    with device:
        base = AutoModelForCausalLM.from_config(described, dtype=dtype, attn_implementation="eager")
    base.config.num_hidden_layers = layers
    for index in range(layers):
        with device:
            layer = LlamaDecoderLayer(base.config, index).to(dtype)
        _quantise(layer, dtype, device)
        base.model.layers.append(layer)
    base.is_loaded_in_4bit = base.is_quantized = True
    return base.requires_grad_(False)


def _quantise(layer: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    import bitsandbytes as bnb

    for name, linear in list(layer.named_modules()):
        if not isinstance(linear, nn.Linear):
            continue
        parent, _, child = name.rpartition(".")
        packed = bnb.nn.Linear4bit(
            linear.in_features, linear.out_features, bias=False, compute_dtype=dtype,
            compress_statistics=True, quant_type="nf4", device="meta",
        )  # fmt: skip
        weight = torch.randn_like(linear.weight) * 0.02
        packed.weight = bnb.nn.Params4bit(
            weight, requires_grad=False, compress_statistics=True, quant_type="nf4", module=packed
        )._quantize(device)
        setattr(layer.get_submodule(parent), child, packed)


def _triplets(part: Part, base: Any) -> list[TripletTokens]:
    """An optimizer step's triplets, as long as generated ones are; four share a system prompt."""
    rng, scale = Random(0), 8 if part.tiny else 1

    def ids(length: int) -> list[int]:
        return [rng.randrange(3, base.config.vocab_size) for _ in range(max(2, length // scale))]

    made = []
    for number in range(16):
        if number % 4 == 0:
            system = ids(80)
        benign, answer = ids(rng.randint(60, 180)), ids(24)
        attacked = InjectionTokens([*benign, *ids(60)], answer, ids(6), ids(16))
        made.append(TripletTokens(str(number), system, benign, ids(100), answer, (attacked,)))
    return made


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "part", choices=["machine", "resume", "profile", *(f"step-{size}" for size in SIZES)]
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--tiny", action="store_true", help="on CPU, with tiny shapes")
    given = parser.parse_args()
    part = Part(given.file, given.tiny)
    name, _, size = given.part.partition("-")
    if name == "step":
        step(part, size)
    else:
        {"machine": machine, "resume": resume, "profile": profiled}[name](part)


if __name__ == "__main__":
    main()
