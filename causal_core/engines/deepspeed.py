"""DeepSpeed ZeRO 1, 2 and 3: workers share optimizer state, gradients and parameters.

DeepSpeed does the sharding and the communication. Learning rate, clipping threshold and the
decision to skip a step come from outside, as with every engine; what is saved is gathered whole.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from causal_core.config import Config
from causal_core.device import distributed_backend
from causal_core.engines.base import EngineState, LossFunction
from causal_core.engines.optimizer import parameter_groups
from causal_core.errors import CheckpointError
from causal_core.model.causal_model import CausalModel
from causal_core.trees.prefix_tree import TreeBatch

_MOMENTS = ("exp_avg", "exp_avg_sq")
_SCATTERS_PARAMETERS = 3
_SCATTERS_GRADIENTS = 2


class DeepSpeedEngine:
    """Implements `causal_core.engines.base.Engine` with DeepSpeed."""

    local_until_last = False  # what it has reduced or flattened by then cannot be taken back

    def __init__(self, model: CausalModel, config: Config, device: torch.device) -> None:
        deepspeed = _import_deepspeed(device)
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self._device = device
        self._stage = config.deepspeed.zero_stage
        self.collective_forward = self._stage == _SCATTERS_PARAMETERS
        self.model = model
        self.parameters = model.trainable_parameters()
        self.shapes: Mapping[str, torch.Size] = {n: p.shape for n, p in self.parameters.items()}
        self._gathered: Callable[..., Any] = deepspeed.zero.GatheredParameters
        self._adam = _HoldableAdamW(
            parameter_groups(self.parameters, config.train), lr=config.train.learning_rate
        )
        settings = _settings(config)
        if self.collective_forward:
            # Parameter by parameter, so that no worker's device ever holds the whole model.
            deepspeed.zero.Init(module=model, config_dict_or_path=settings)
            _move_buffers(model, device)
        self._engine, self._zero, *_ = deepspeed.initialize(
            model=_WithLoss(model),
            optimizer=self._adam,
            config=settings,
            dist_init_required=False,
        )
        self._make_state()
        self._reached: set[str] = set()  # parameters that a gradient got to
        self._hooks = [
            parameter.register_hook(partial(self._reach, name))
            for name, parameter in self.parameters.items()
        ]

    def rounds(self, own: int) -> int:
        if self._stage < _SCATTERS_GRADIENTS:
            return max(1, own)
        # Every backward reduces gradients (and in ZeRO-3 every forward gathers parameters).
        return max(1, self._most(own))

    def _most(self, own: int) -> int:
        """The largest of all workers' numbers. Collective."""
        most = torch.tensor([own], device=self._device)
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        return int(most)

    def _evened(self, batch: TreeBatch) -> TreeBatch:
        """The batch with as many chunks of labels as any worker's: for each one ZeRO-3 gathers the
        output embedding, and it holds the order of all modules to be the same everywhere."""
        missing = self._most(len(batch.labels)) - len(batch.labels)
        empty = batch.labels[0].without_predictions()
        return replace(batch, labels=[*batch.labels, *[empty] * missing])

    def accumulate(self, batch: TreeBatch, loss_of: LossFunction, last: bool) -> None:
        if self.collective_forward:
            batch = self._evened(batch)
        self._engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages over workers; the loss is a share of a global mean, so it is summed.
        loss = self._engine(batch, loss_of) * self.world_size
        self._engine.backward(loss, scale_wrt_gas=False)

    def without_gradient(self) -> list[str]:
        # Seen on its way by hooks: where a gradient lies afterwards depends on the stage, and
        # asking for it is a collective of its own for each tensor.
        flags = [name in self._reached for name in self.parameters]
        anywhere = self.sum_over_workers(torch.tensor(flags, dtype=torch.float64)).tolist()
        if any(anywhere):
            for hook in self._hooks:
                hook.remove()
        return [name for name, count in zip(self.parameters, anywhere, strict=True) if not count]

    def _reach(self, name: str, gradient: Tensor) -> None:
        if name not in self._reached and gradient.any():
            self._reached.add(name)

    def clip(self, max_norm: float) -> float:
        # DeepSpeed scales by max_norm / (norm + 1e-6), as torch does, when it steps.
        self._zero.clip_grad = max_norm
        norm = float(self._global_norm())
        return norm if norm >= 0 else float("nan")  # DeepSpeed says -1 for what is not finite

    def step(self, learning_rate: float) -> None:
        for group in self._adam.param_groups:
            group["lr"] = learning_rate
        self._engine.step()

    def discard(self) -> None:
        # Its own step clears all its buffers, whatever the stage; only the update is left out.
        self._adam.held = True
        self._engine.step()
        self._adam.held = False

    def sum_over_workers(self, values: Tensor) -> Tensor:
        summed = values.to(self._device)
        dist.all_reduce(summed)
        return summed.to(values.device)

    def weights(self) -> dict[str, Tensor]:
        whole = {}
        for name, parameter in self.parameters.items():
            with self._gathered([parameter]):
                whole[name] = parameter.detach().cpu().clone(memory_format=torch.contiguous_format)
        return whole

    def state(self) -> EngineState:
        from deepspeed.utils import safe_get_full_optimizer_state

        tensors = {}
        steps = self._adam.state[self._shards()[0]]["step"]
        for name, parameter in self.parameters.items():
            for key in _MOMENTS:
                moment = safe_get_full_optimizer_state(parameter, key)
                tensors[f"{name}//{key}"] = moment.detach().to("cpu", parameter.dtype).contiguous()
            tensors[f"{name}//step"] = steps.detach().cpu().clone()
        return EngineState(self.weights(), tensors)

    def load(self, state: EngineState) -> None:
        tensors = state.optimizer_tensors
        wanted = {f"{name}//{key}" for name in self.parameters for key in (*_MOMENTS, "step")}
        if tensors and tensors.keys() != wanted:
            odd = sorted(tensors.keys() ^ wanted)
            raise CheckpointError(
                f"the optimizer state is not AdamW's of these parameters: {len(odd)} differ, "
                f"e.g. {odd[0]!r}"
            )
        for name, parameter in self.parameters.items():
            with self._gathered([parameter], modifier_rank=0), torch.no_grad():
                parameter.copy_(state.weights[name])
        self._zero.refresh_fp32_params()
        if not tensors:
            return
        for name, parameter in self.parameters.items():
            for key in _MOMENTS:
                self._set_moment(parameter, key, tensors[f"{name}//{key}"])
        steps = tensors[f"{next(iter(self.parameters))}//step"]
        for shard in self._shards():
            self._adam.state[shard]["step"].copy_(steps)

    def _make_state(self) -> None:
        """Adam's state from the start: DeepSpeed would look for it once, after the first step,
        and not again if that step is skipped."""
        for shard in self._shards():
            self._adam.state[shard] = {
                "step": torch.zeros(()),
                "exp_avg": torch.zeros_like(shard),
                "exp_avg_sq": torch.zeros_like(shard),
            }
        if not self.collective_forward:
            self._zero._lazy_init_hp_params_optimizer_state()

    def _shards(self) -> list[Tensor]:
        """This worker's flat parts of the parameters, in 32 bit: what Adam moves."""
        zero = self._zero
        if self.collective_forward:
            return list(zero.fp32_partitioned_groups_flat)
        return list(zero.single_partition_of_fp32_groups)

    def _global_norm(self) -> Tensor:
        zero = self._zero
        if not self.collective_forward:
            return zero.scaled_global_norm()
        from deepspeed.runtime.utils import combine_grad_norm_groups

        return combine_grad_norm_groups(zero._get_norm_groups())

    def _set_moment(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        value = value.to(self._device, torch.float32)
        if not self.collective_forward:
            safe_set_full_optimizer_state(parameter, value, key)
            return
        size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        padded = torch.zeros(size * self.world_size, device=value.device)
        padded[: value.numel()] = value.flatten()
        safe_set_local_optimizer_state(parameter, padded.chunk(self.world_size)[self.rank], key)


class _HoldableAdamW(torch.optim.AdamW):
    """AdamW whose step does nothing while it is held."""

    held = False

    def step(self, closure: Any = None) -> Any:
        return None if self.held else super().step(closure)


class _WithLoss(nn.Module):
    """Model and loss as one forward: DeepSpeed hooks into modules that return tensors."""

    def __init__(self, model: CausalModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: TreeBatch, loss_of: LossFunction) -> Tensor:
        return loss_of(self.model(batch), batch)


def _settings(config: Config) -> dict[str, Any]:
    section = config.deepspeed
    zero: dict[str, Any] = {
        "stage": section.zero_stage,
        "reduce_bucket_size": section.reduce_bucket_size,
        "allgather_bucket_size": section.reduce_bucket_size,
        "overlap_comm": False,
    }
    if section.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        # Micro-batches and their number are this project's.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.train.clip_norm,
        "steps_per_print": sys.maxsize,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW runs where the state is
        "zero_optimization": zero,
    }


def _import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed, told which device this worker has: it reads both from the environment."""
    os.environ["DS_ACCELERATOR"] = device.type
    os.environ["LOCAL_RANK"] = str(device.index or 0)
    if not dist.is_initialized():
        backend = distributed_backend(device.type == "cuda")
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    # DeepSpeed calls collectives by the names that torch is about to rename.
    warnings.filterwarnings("ignore", "`torch.distributed.*deprecated", FutureWarning)
    import deepspeed

    # On CPU it would compile a shared-memory reduction at the first start; gloo needs no compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    from deepspeed.accelerator import get_accelerator, set_accelerator

    if device.type == "cpu" and get_accelerator().device_name() != "cpu":
        from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

        set_accelerator(CPU_Accelerator())  # imported earlier, on a machine with GPUs
    deepspeed.init_distributed(dist.get_backend(), verbose=False)
    return deepspeed


def _move_buffers(model: nn.Module, device: torch.device) -> None:
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
