"""How a process is set up for its device; what needs CUDA itself is in `test_gpu.py`."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch

from causal_core.config import LossSection, TrainSection
from causal_core.device import distributed_backend, prepare_device, varying_operations_refused
from causal_core.engines.plain import PlainEngine
from causal_core.errors import UserError
from causal_core.loss.objective import Denominators
from causal_core.step.train_step import TrainStep
from causal_core.trees.packing import FLAT, ROWS
from tests.tiny import ALL_TERMS, random_triplets, tiny_model

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "CUBLAS_WORKSPACE_CONFIG")


@pytest.fixture(autouse=True)
def undone(monkeypatch):
    """Settings of the process, and a CUDA that takes whatever it is told."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    precision = torch.get_float32_matmul_precision()
    yield
    for name in VARIABLES:
        os.environ.pop(name, None)
    torch.set_float32_matmul_precision(precision)
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def told(monkeypatch):
    """What CUDA is told, in order, with the environment that it would start with."""
    calls = []

    def tells(name):
        return lambda *arguments: calls.append((name, arguments, dict(os.environ)))

    for name in ("set_device", "set_per_process_memory_fraction"):
        monkeypatch.setattr(torch.cuda, name, tells(name))
    return calls


def test_float32_is_float32_on_cuda(told):
    torch.set_float32_matmul_precision("high")
    prepare_device(CUDA, None)
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cuda.matmul.allow_tf32


def test_segments_grow_from_the_start_of_cuda(told):
    prepare_device(CUDA, None)
    ((_, arguments, environment),) = told
    assert arguments == (CUDA,)
    assert environment["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    assert "CUBLAS_WORKSPACE_CONFIG" not in environment


@pytest.mark.parametrize("name", VARIABLES[:2])
def test_what_the_user_says_of_the_allocator_stays(told, monkeypatch, name):
    monkeypatch.setenv(name, "max_split_size_mb:64")
    prepare_device(CUDA, None)
    assert {n: os.environ.get(n) for n in VARIABLES[:2]} == {
        **dict.fromkeys(VARIABLES[:2]),
        name: "max_split_size_mb:64",
    }


def test_a_process_on_cpu_keeps_its_environment():
    before = dict(os.environ)
    prepare_device(CPU, None, deterministic=True)
    assert dict(os.environ) == before


def test_cublas_has_a_fixed_workspace_before_cuda_starts(told, monkeypatch):
    prepare_device(CUDA, None, deterministic=True)
    assert told[0][2]["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert torch.are_deterministic_algorithms_enabled()
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    prepare_device(CUDA, None, deterministic=True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_the_next_run_of_a_process_is_what_its_config_says():
    prepare_device(CPU, None, deterministic=True)
    prepare_device(CPU, None)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_part_of_a_gpu_is_a_part_of_its_memory(told):
    prepare_device(CUDA, None, gpus=0.5)
    prepare_device(CUDA, None, gpus=1)
    fractions = [call[1] for call in told if call[0] != "set_device"]
    assert fractions == [(0.5, CUDA)]
    assert distributed_backend(0.5) == "gloo" and distributed_backend(1) == "nccl"


def test_an_operation_that_varies_is_refused_by_name():
    prepare_device(CPU, None, deterministic=True)
    with (
        pytest.raises(UserError, match=r"train\.deterministic=true: put_ .*deterministic=false"),
        varying_operations_refused(),
    ):
        torch.zeros(2).put_(torch.tensor([0]), torch.ones(1))
    with pytest.raises(RuntimeError, match="shapes"), varying_operations_refused():
        torch.zeros(2, 3) @ torch.zeros(2, 3)


@pytest.mark.parametrize("packing", [FLAT, ROWS], ids=["flat", "rows"])
@pytest.mark.parametrize("worst_case", [None, 0.5])
def test_a_step_with_every_term_is_the_same_in_deterministic_mode(packing, worst_case):
    losses = LossSection(**ALL_TERMS, worst_case=worst_case)
    reports = []
    for deterministic in (False, True):
        prepare_device(CPU, None, deterministic=deterministic)
        train = TrainSection(micro_batch_tokens=150)
        engine = PlainEngine(tiny_model(dropout=0.1), train, CPU)
        step = TrainStep(engine, losses, train, CPU, packing=packing)
        batch = random_triplets(6, 5, injections=(1, 2))
        for number in range(2):
            torch.manual_seed(number)
            report = step.run(batch, Denominators.of(batch), 1e-2, batch[0])
        reports.append((report, engine.weights()))
    assert reports[0][0] == reports[1][0]
    assert all(torch.equal(weight, reports[1][1][n]) for n, weight in reports[0][1].items())


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the heap is glibc's")
def test_memory_that_is_freed_and_needed_again_stays_with_the_process():
    program = """
import ctypes, os, torch
from causal_core.device import freed_memory_stays

SIZE = 24 * 2**20
libc = ctypes.CDLL(None)  # torch's small objects would decide what stays beneath them
libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

def held():  # MiB of this process, after 96 MiB came and went
    for _ in range(5):
        blocks = [libc.malloc(SIZE) for _ in range(4)]
        for block in blocks:
            libc.memset(block, 1, SIZE)
        for block in blocks:
            libc.free(block)
    with open("/proc/self/statm") as status:
        return int(status.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

held()
outside = held()
with freed_memory_stays(torch.device("cpu")):
    inside = held()
print(inside - outside, held() - outside)
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    inside, after = map(float, done.stdout.split())
    assert inside > 60 and after < 20, (done.stdout, done.stderr)
