"""What needs a CUDA device: the same step there as on CPU, 4-bit, paged optimizer, copies, memory.

Skipped without one; `pytest -m gpu` runs them.
"""

from __future__ import annotations

import pytest
import torch

from causal_core.config import TrainSection
from causal_core.device import distributed_backend, prepare_device
from causal_core.engines.plain import PlainEngine
from causal_core.loss.objective import Denominators
from causal_core.model.layout import reason_against_flex
from causal_core.run.exercise import Exercise, exercise_config, run_exercises, write_base
from causal_core.step.train_step import TrainStep
from causal_core.trees.staging import moved, staged
from tests.tiny import gradients, random_triplets, relative_error, tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def one_step_gradients(device, losses):
    model = tiny_model().to(device)
    engine = PlainEngine(model, TrainSection(), device)
    engine.step = lambda learning_rate: None  # keep the gradients to look at
    triplets = random_triplets(6, seed=1)
    report = TrainStep(engine, losses, TrainSection(clip_norm=1e9), device).run(
        triplets, Denominators.of(triplets), 1e-3, triplets[0]
    )
    return report, {name: g.cpu() for name, g in gradients(model).items()}


def test_the_step_equals_that_on_cpu():
    from causal_core.config import LossSection

    losses = LossSection(lambda_causal=0.5, lambda_spurious=0.5)
    device = torch.device("cuda", 0)
    torch.backends.cuda.matmul.allow_tf32 = False
    on_cpu, expected = one_step_gradients(torch.device("cpu"), losses)
    on_gpu, found = one_step_gradients(device, losses)
    assert on_gpu.loss == pytest.approx(on_cpu.loss, rel=1e-4)
    assert relative_error(found, expected) < 1e-3


def test_the_head_is_float32_where_the_hidden_state_is():
    model = tiny_model().to("cuda")
    assert {p.device.type for p in model.projection.parameters()} == {"cuda"}
    assert {p.dtype for p in model.projection.parameters()} == {torch.float32}


def test_copies_are_whole_and_leave_through_pinned_memory():
    source = {"a": torch.arange(10_000), "b": [torch.ones(3, 5, dtype=torch.bool)]}
    value, buffer = staged(source, pinned=True)
    assert buffer.is_pinned()
    found = moved(value, buffer, torch.device("cuda", 0))
    assert torch.equal(found["a"].cpu(), source["a"])
    assert torch.equal(found["b"][0].cpu(), source["b"][0])


def test_a_fraction_of_a_gpu_is_a_fraction_of_its_memory():
    device = torch.device("cuda", 0)
    try:
        prepare_device(device, None, gpus=0.01)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            total = torch.cuda.get_device_properties(device).total_memory
            torch.empty(total // 2, dtype=torch.uint8, device=device)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    assert distributed_backend(0.5) == "gloo" and distributed_backend(1) == "nccl"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("heads", [(24, 8, 128, 128), (9, 3, 64, 64), (16, 16, 192, 128)], ids=str)
def test_flex_attention_serves_the_heads_of_common_models(heads, dtype):
    assert reason_against_flex(*heads, dtype, torch.device("cuda", 0)) is None


def test_the_efficient_attention_kernel_takes_the_tree_mask():
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from causal_core.config import LossSection
    from causal_core.loss.objective import needs_of
    from causal_core.trees.packing import RowCost, cut_micro_batches

    model = tiny_model().to("cuda").eval()
    needs = needs_of(LossSection())
    (micro,) = cut_micro_batches(random_triplets(3, seed=1), needs, 10_000, RowCost())[:1]
    batch = micro.batch.to(torch.device("cuda", 0))
    outputs = []
    for kernel in (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH):
        with torch.no_grad(), sdpa_kernel(kernel):
            outputs.append(model(batch))
    torch.testing.assert_close(outputs[0].z, outputs[1].z, rtol=1e-3, atol=1e-4)
    logits = [model.logits(output.label_hidden) for output in outputs]
    torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"model": {"dtype": "bfloat16"}},
        {"model": {"quantization": "nf4", "dtype": "bfloat16"}},
        {"train": {"optimizer": "paged_adamw_8bit"}},
        {"engine": "deepspeed", "deepspeed": {"zero_stage": 2, "offload_optimizer": True}},
        {"engine": "deepspeed", "deepspeed": {"zero_stage": 3}},
    ],
    ids=["float32", "bfloat16", "nf4", "paged_adamw_8bit", "zero-2 offload", "zero-3"],
)
def test_training_on_one_gpu(sections, tmp_path):
    base = write_base(tmp_path / "base")
    on_gpu = Exercise("gpu", exercise_config(base, **sections), last=4)
    (found,) = run_exercises([on_gpu], tmp_path, device="cuda")
    (expected,) = run_exercises(
        [Exercise("cpu", exercise_config(base, **sections), last=4)], tmp_path
    )
    assert found.error is None and all(found.applied)
    assert found.losses == pytest.approx(expected.losses, rel=0.05)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
@pytest.mark.parametrize("engine", ["ddp", "deepspeed"])
def test_two_gpus_end_where_one_does(engine, tmp_path):
    base = write_base(tmp_path / "base")
    (one,) = run_exercises([Exercise("one", exercise_config(base))], tmp_path, device="cuda")
    config = exercise_config(base, engine=engine, resources={"workers": 2})
    (two,) = run_exercises([Exercise("two", config)], tmp_path, workers=2, device="cuda")
    assert two.error is None
    assert two.losses == pytest.approx(one.losses, rel=1e-3)
