"""Optimizer state by parameter name: saved, restored, exact; 8-bit states included."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from causal_core.config import TrainSection
from causal_core.engines.optimizer import build_optimizer, load_optimizer_state, optimizer_state
from causal_core.errors import CheckpointError

CPU = torch.device("cpu")


def parameters_of(seed):
    torch.manual_seed(seed)
    # bitsandbytes keeps tensors below 4,096 elements in 32 bit.
    shapes = {"a": (64, 128), "b": (64, 128), "bias": (64,)}
    return {name: nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}


def steps(parameters, optimizer, first, count):
    for step in range(first, first + count):
        generator = torch.Generator().manual_seed(step)
        for parameter in parameters.values():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit", "paged_adamw_8bit"])
def test_saved_and_restored_state_continues_bit_identical(name, tmp_path):
    config = TrainSection(optimizer=name, learning_rate=0.01)
    straight = parameters_of(0)
    optimizer = build_optimizer(straight, config, CPU)
    steps(straight, optimizer, 0, 3)
    tensors, values = optimizer_state(optimizer, straight)
    save_file(tensors, tmp_path / "o.safetensors")
    resumed = {n: nn.Parameter(p.detach().clone()) for n, p in straight.items()}
    again = build_optimizer(resumed, config, CPU)
    load_optimizer_state(again, resumed, load_file(tmp_path / "o.safetensors"), values)
    steps(straight, optimizer, 3, 3)
    steps(resumed, again, 3, 3)
    for key, parameter in straight.items():
        assert torch.equal(parameter, resumed[key]), key
    if "8bit" in name:
        assert any(t.dtype == torch.uint8 for t in tensors.values())


def test_what_is_paged_is_paged_again_after_a_resume(monkeypatch):
    """bitsandbytes' own choice of memory, on a device that is not the CPU; the driver's part, the
    memory that GPU and host share, stands in."""
    import bitsandbytes as bnb

    def get_paged(*shape, dtype, device):
        shared = torch.full(shape, 77).to(dtype)
        shared.is_paged = True
        return shared

    monkeypatch.setattr(bnb.functional, "get_paged", get_paged)
    monkeypatch.setattr(bnb.functional, "fill", lambda tensor, value: tensor.fill_(value))
    monkeypatch.setattr(bnb.functional.GlobalPageManager.get_instance(), "paged_tensors", [])
    shapes = {"large": (320, 320), "small": (64, 128)}  # from 100,000 elements on it is paged
    parameters = {n: nn.Parameter(torch.empty(s, device="meta")) for n, s in shapes.items()}
    optimizer = bnb.optim.PagedAdamW8bit(parameters.values())
    saved = {}
    for name, parameter in parameters.items():
        blocks = -(-parameter.numel() // 256)
        for n in (1, 2):
            saved[f"{name}//state{n}"] = torch.full(shapes[name], n, dtype=torch.uint8)
            saved[f"{name}//qmap{n}"] = torch.ones(256)
            saved[f"{name}//absmax{n}"] = torch.ones(blocks)
    load_optimizer_state(optimizer, parameters, saved, {name: {"step": 3} for name in parameters})
    state = optimizer.state[parameters["large"]]
    for n in (1, 2):
        assert state[f"state{n}"].is_paged
        assert torch.equal(state[f"state{n}"], saved[f"large//state{n}"])
    pages = optimizer.page_mng.paged_tensors
    assert [id(page) for page in pages] == [id(state["state1"]), id(state["state2"])]
    small = optimizer.state[parameters["small"]]
    assert not hasattr(small["state1"], "is_paged") and small["state1"].device.type == "meta"


def test_state_of_an_unknown_parameter_or_a_missing_one_is_refused():
    parameters = parameters_of(0)
    optimizer = build_optimizer(parameters, TrainSection(), CPU)
    steps(parameters, optimizer, 0, 1)
    tensors, values = optimizer_state(optimizer, parameters)
    fresh = build_optimizer(parameters, TrainSection(), CPU)
    with pytest.raises(CheckpointError, match="'c', which is no trainable parameter"):
        load_optimizer_state(fresh, parameters, {**tensors, "c//exp_avg": torch.ones(1)}, values)
    partial = {k: v for k, v in tensors.items() if not k.startswith("b//")}
    with pytest.raises(CheckpointError, match="no optimizer state for 1 of 3 parameters"):
        load_optimizer_state(fresh, parameters, partial, values)


def test_norms_and_biases_do_not_decay():
    parameters = parameters_of(0)
    groups = build_optimizer(parameters, TrainSection(weight_decay=0.5), CPU).param_groups
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    assert decay[id(parameters["a"])] == 0.5 and decay[id(parameters["bias"])] == 0.0
