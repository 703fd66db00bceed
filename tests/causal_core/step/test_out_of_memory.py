"""When memory runs out in a step, the step is done again with smaller micro-batches, exactly."""

from __future__ import annotations

import gc

import pytest
import torch
from safetensors.torch import load_file

from causal_core.config import LossSection, TrainSection
from causal_core.engines.plain import PlainEngine
from causal_core.errors import OneWorkerFailedError, RunFailedError
from causal_core.loss.objective import Denominators, needs_of
from causal_core.run.exercise import Exercise, exercise_config, run_exercises, write_base
from causal_core.step.out_of_memory import is_out_of_memory
from causal_core.step.train_step import TrainStep
from causal_core.trees.packing import tree_nodes
from tests.tiny import random_triplets, tiny_model

CPU = torch.device("cpu")
LOSS = LossSection(lambda_causal=0.5, lambda_spurious=0.5)


class ExhaustedEngine(PlainEngine):
    """A device that holds no micro-batch of more than `capacity` nodes: it fails in the backward,
    when gradients of earlier micro-batches and of some parameters are there already."""

    def __init__(self, model, train, capacity: int, error: BaseException) -> None:
        super().__init__(model, train, CPU)
        self.capacity, self.error, self.failures = capacity, error, 0

    def accumulate(self, batch, loss_of, last) -> None:
        if batch.input_ids.numel() <= self.capacity:
            super().accumulate(batch, loss_of, last)
            return
        self.failures += 1
        loss = loss_of(self.model(batch), batch)
        first = next(iter(self.parameters.values()))
        handle = first.register_hook(self._fail)
        try:
            loss.backward()
        finally:
            handle.remove()
        raise AssertionError("the injected error did not come")

    def _fail(self, _) -> None:
        raise type(self.error)(*self.error.args)  # a new one: with it live the frames it came from


def steps(engine_of, budget: int, count: int = 3, seed: int = 5):
    """Final parameters, losses and the step object after `count` steps with LoRA dropout."""
    model = tiny_model(dropout=0.3)
    train = TrainSection(micro_batch_tokens=budget, learning_rate=1e-2)
    engine = engine_of(model, train)
    step = TrainStep(engine, LOSS, train, CPU)
    losses = []
    for number in range(count):
        batch = random_triplets(6, seed + number)
        torch.manual_seed(number)
        report = step.run(batch, Denominators.of(batch), 1e-2, batch[0])
        losses.append(report.loss)
    return {n: p.detach().clone() for n, p in engine.parameters.items()}, losses, step


class WatchedEngine(ExhaustedEngine):
    """Counts the autograd nodes of earlier forwards that are there when another one begins."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.left: list[int] = []

    def accumulate(self, batch, loss_of, last) -> None:
        nodes = [o for o in gc.get_objects() if isinstance(o, torch.autograd.function.FunctionCtx)]
        self.left.append(len(nodes))
        del nodes
        super().accumulate(batch, loss_of, last)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_nothing_of_the_failed_graph_is_left_when_the_step_is_done_again(checkpointing, caplog):
    caplog.set_level("INFO")  # what is logged keeps nothing alive either
    while gc.collect():  # what other tests left
        pass
    error = torch.OutOfMemoryError("CUDA out of memory")
    model = tiny_model(gradient_checkpointing=checkpointing)
    engine = WatchedEngine(model, TrainSection(), 150, error)
    batch = random_triplets(6, 5)
    step = TrainStep(engine, LOSS, TrainSection(micro_batch_tokens=300), CPU)
    step.run(batch, Denominators.of(batch), 1e-2, batch[0])
    assert engine.failures == 1
    first, *later = engine.left
    assert len(later) > 1 and max(later) <= first


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError(),
     RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")],
    ids=["cuda", "host", "cpu allocator"],
)  # fmt: skip
def test_a_step_that_ran_out_of_memory_equals_one_that_never_did(error):
    exhausted, losses, step = steps(lambda m, t: ExhaustedEngine(m, t, 150, error), budget=300)
    assert step.engine.failures >= 1 and step.budget.nodes == 150
    plain, expected, _ = steps(lambda m, t: PlainEngine(m, t, CPU), budget=150)
    assert losses == expected
    assert all(torch.equal(exhausted[name], plain[name]) for name in plain)


def test_a_single_triplet_that_does_not_fit_stops_with_what_to_do():
    batch = random_triplets(6, 5)
    smallest = min(tree_nodes(t, needs_of(LOSS)) for t in batch)
    error = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(RunFailedError, match=r"single triplet.*gradient_checkpointing=true"):
        steps(lambda m, t: ExhaustedEngine(m, t, smallest - 1, error), budget=300, count=1)


class OneOfTwo(PlainEngine):
    """One worker of two whose memory runs out in a micro-batch, counted from 1."""

    world_size = 2

    def __init__(self, model, train, failing: int, local_until_last: bool) -> None:
        super().__init__(model, train, CPU)
        self.local_until_last, self._left = local_until_last, failing

    def accumulate(self, batch, loss_of, last) -> None:
        self._left -= 1
        if not self._left:
            raise torch.OutOfMemoryError("CUDA out of memory")
        super().accumulate(batch, loss_of, last)


@pytest.mark.parametrize(("failing", "local"), [(2, True), (1, False)], ids=["last", "ZeRO"])
def test_a_worker_that_cannot_go_back_fails_alone_so_that_all_are_restarted(failing, local):
    """The others already wait for it, so the error must not look like one that all of them have."""
    model, batch = tiny_model(), random_triplets(2, 5)
    train = TrainSection(micro_batch_tokens=300)
    step = TrainStep(OneOfTwo(model, train, failing, local), LOSS, train, CPU)
    ready = [step.cut([triplet])[0] for triplet in batch]
    with pytest.raises(OneWorkerFailedError, match=r"ran out .*gradient_checkpointing=true"):
        step.run(batch, Denominators.of(batch), 1e-2, batch[0], ready)


CUBLAS = "CUDA error: {} when calling `cublasCreate(handle)`"
NCCL = (
    "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:{}, unhandled cuda error "
    "(run with NCCL_DEBUG=INFO for details), NCCL version 2.27.5\nncclUnhandledCudaError: Call to "
    "CUDA function failed.\nLast error:\n{}"
)


@pytest.mark.parametrize(
    "text",
    [
        CUBLAS.format("CUBLAS_STATUS_NOT_INITIALIZED"),
        CUBLAS.format("CUBLAS_STATUS_ALLOC_FAILED"),
        "CUDA driver error: out of memory",
        "Triton Error [CUDA]: out of memory",
        NCCL.format(94, "Cuda failure 2 'out of memory'"),
        NCCL.format(94, "Cuda failure 'out of memory'"),
        NCCL.format(77, "Failed to CUDA calloc async 6291456 bytes"),
    ],
)
def test_libraries_that_allocate_for_themselves_are_understood(text):
    assert is_out_of_memory(RuntimeError(text))
    if text.startswith("NCCL"):
        assert is_out_of_memory(torch.distributed.DistBackendError(text))


@pytest.mark.parametrize(
    "text",
    [
        "mat1 and mat2 shapes cannot be multiplied",
        CUBLAS.format("CUBLAS_STATUS_EXECUTION_FAILED"),
        NCCL.format(94, "Cuda failure 700 'an illegal memory access was encountered'"),
        NCCL.format(94, "socketStartConnect: Connect to 10.0.0.2<1> failed : Connection refused"),
    ],
)
def test_other_errors_are_not_taken_for_exhausted_memory(text):
    assert not is_out_of_memory(RuntimeError(text))


def test_other_errors_end_the_step():
    error = RuntimeError("element 0 of tensors does not require grad")
    with pytest.raises(RuntimeError, match="does not require grad"):
        steps(lambda m, t: ExhaustedEngine(m, t, 100, error), budget=300, count=1)


@pytest.mark.slow
def test_all_workers_do_the_step_again_when_one_runs_out_of_memory(tmp_path):
    config = exercise_config(
        write_base(tmp_path / "base"), engine="ddp", train={"micro_batch_tokens": 60}
    )
    names = ("enough", "exhausted")
    enough, exhausted = run_exercises(
        [Exercise(name, config, last=3, double=True) for name in names],
        tmp_path,
        workers=2,
        module="tests.exhausted_exercise",
    )
    assert enough.error is None and exhausted.error is None
    assert (tmp_path / "exhausted.txt").is_file()  # it did run out
    assert exhausted.losses == pytest.approx(enough.losses, rel=1e-10)
    weights = [load_file(tmp_path / f"{name}.safetensors") for name in names]
    for name, expected in weights[0].items():
        assert torch.allclose(weights[1][name], expected, rtol=0, atol=1e-10), name
