"""What runs on a CUDA device: the same step there as on CPU, 4-bit, paged optimizer, copies.

Each test also runs with the CPU in the device's place, as far as it goes there, so that what the
host does for it is checked on every machine. `pytest -m gpu` runs them on CUDA.
"""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel

from causal_core.config import LossSection, TrainSection
from causal_core.device import prepare_device
from causal_core.engines.plain import PlainEngine
from causal_core.loss.objective import Denominators, needs_of
from causal_core.model.layout import reason_against_flex
from causal_core.run.exercise import Exercise, exercise_config, run_exercises, write_base
from causal_core.step.train_step import TrainStep
from causal_core.trees.packing import FLAT, ROWS, cut_micro_batches
from causal_core.trees.staging import moved, staged
from tests.tiny import gradients, random_triplets, relative_error, tiny_model

pytestmark = pytest.mark.long

CPU = torch.device("cpu")
NEEDS_CUDA = (
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
)
# The fast kernel that takes a mask.
MASKED_KERNEL = {"cuda": SDPBackend.EFFICIENT_ATTENTION, "cpu": SDPBackend.FLASH_ATTENTION}


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=NEEDS_CUDA)])
def device(request):
    return torch.device("cuda", 0) if request.param == "cuda" else CPU


def one_step_gradients(device, packing):
    model = tiny_model().to(device)
    train = TrainSection(clip_norm=1e6)
    engine = PlainEngine(model, train, device)
    engine.step = lambda learning_rate: None  # keep the gradients to look at
    losses = LossSection(lambda_causal=0.5, lambda_spurious=0.5)
    triplets = random_triplets(6, seed=1)
    report = TrainStep(engine, losses, train, device, packing=packing).run(
        triplets, Denominators.of(triplets), 1e-3, triplets[0]
    )
    return report, {name: g.cpu() for name, g in gradients(model).items()}


@pytest.mark.parametrize("packing", [ROWS, None], ids=["rows", "the device's layout"])
def test_the_step_equals_that_on_cpu(device, packing):
    expected_report, expected = one_step_gradients(CPU, FLAT)
    report, found = one_step_gradients(device, packing)
    assert report.loss == pytest.approx(expected_report.loss, rel=1e-4)
    assert relative_error(found, expected) < 1e-3


def test_the_head_is_float32_where_the_hidden_state_is(device):
    model = tiny_model().to(device)
    assert {p.device.type for p in model.projection.parameters()} == {device.type}
    assert {p.dtype for p in model.projection.parameters()} == {torch.float32}


def test_copies_are_whole_and_leave_through_pinned_memory(device):
    source = {"a": torch.arange(10_000), "b": [torch.ones(3, 5, dtype=torch.bool)]}
    value, buffer = staged(source, pinned=device.type == "cuda")
    assert buffer.is_pinned() == (device.type == "cuda")
    found = moved(value, buffer, device)
    assert torch.equal(found["a"].cpu(), source["a"])
    assert torch.equal(found["b"][0].cpu(), source["b"][0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_fraction_of_a_gpu_is_a_fraction_of_its_memory():
    device = torch.device("cuda", 0)
    try:
        prepare_device(device, None, gpus=0.01)
        total = torch.cuda.get_device_properties(device).total_memory
        with pytest.raises(torch.cuda.OutOfMemoryError):
            torch.empty(total // 2, dtype=torch.uint8, device=device)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("heads", [(24, 8, 128, 128), (9, 3, 64, 64), (16, 16, 192, 128)], ids=str)
def test_flex_attention_serves_the_heads_of_common_models(heads, dtype):
    """Of its eager math on CPU see `model/test_flex.py`."""
    assert reason_against_flex(*heads, dtype, torch.device("cuda", 0)) is None


def test_the_fast_attention_kernel_takes_the_tree_mask(device):
    model = tiny_model().to(device).eval()
    triplets = random_triplets(3, seed=1)
    micro, *_ = cut_micro_batches(triplets, needs_of(LossSection()), 10_000, ROWS)
    batch = micro.batch.to(device)
    outputs = []
    for kernel in (MASKED_KERNEL[device.type], SDPBackend.MATH):
        with torch.no_grad(), sdpa_kernel(kernel):
            outputs.append(model(batch))
    torch.testing.assert_close(outputs[0].z, outputs[1].z, rtol=1e-3, atol=1e-4)
    logits = [model.logits(output.label_hidden) for output in outputs]
    torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-3)


SETTINGS = {
    "float32": {},
    "bfloat16": {"model": {"dtype": "bfloat16"}},
    "nf4": {"model": {"quantization": "nf4", "dtype": "bfloat16"}},
    "paged_adamw_8bit": {"train": {"optimizer": "paged_adamw_8bit"}},
    "zero-2 offload": {
        "engine": "deepspeed",
        "deepspeed": {"zero_stage": 2, "offload_optimizer": True},
    },
    "zero-3": {"engine": "deepspeed", "deepspeed": {"zero_stage": 3}},
}
PAGED_FROM = 100_000  # elements of a tensor whose moments bitsandbytes pages
WIDE = 320  # width squared is the head's largest tensor
STEPS = 2


def settings_run(directory, device):
    """Each setting, straight and (`deterministic`) cut in the middle: results by name."""
    base = write_base(directory / "base", hidden=WIDE)
    exercises = []
    for name, sections in SETTINGS.items():
        train = {**sections.get("train", {}), "deterministic": True}
        config = exercise_config(base, **{**sections, "train": train})
        saved = str(directory / f"saved-{name}")
        exercises += [
            Exercise(name, config, last=STEPS, save=saved, saved_at=STEPS // 2),
            Exercise(f"resumed {name}", config, first=STEPS // 2, last=STEPS, resume=saved),
        ]
    results = run_exercises(exercises, directory, device=device.type)
    return {result.name: result for result in results}, directory


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory):
    return settings_run(tmp_path_factory.mktemp("cpu"), CPU)


@pytest.fixture(scope="module")
def on_cuda(tmp_path_factory):
    return settings_run(tmp_path_factory.mktemp("cuda"), torch.device("cuda", 0))


@pytest.fixture
def run(request, device):
    return request.getfixturevalue(f"on_{device.type}")


@pytest.mark.parametrize("name", SETTINGS)
def test_training_in_every_setting(run, on_cpu, name):
    found, expected = run[0][name], on_cpu[0][name]
    assert found.error is None and all(found.applied)
    assert found.losses == pytest.approx(expected.losses, rel=0.05)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_deterministic_run_that_was_cut_ends_bit_identical(run, name):
    results, directory = run
    assert results[f"resumed {name}"].error is None
    straight, resumed = (
        load_file(directory / f"{n}.safetensors") for n in (name, f"resumed {name}")
    )
    assert all(torch.equal(resumed[key], weight) for key, weight in straight.items())


def test_there_is_a_tensor_large_enough_to_be_paged(on_cpu):
    weights = load_file(on_cpu[1] / "paged_adamw_8bit.safetensors")
    assert max(weight.numel() for weight in weights.values()) >= PAGED_FROM


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
@pytest.mark.parametrize("engine", ["ddp", "deepspeed"])
def test_two_gpus_end_where_one_does(engine, tmp_path):
    """Of gloo on CPU see `engines/test_engines.py`."""
    base = write_base(tmp_path / "base")
    (one,) = run_exercises([Exercise("one", exercise_config(base))], tmp_path, device="cuda")
    config = exercise_config(base, engine=engine, resources={"workers": 2})
    (two,) = run_exercises([Exercise("two", config)], tmp_path, workers=2, device="cuda")
    assert two.error is None
    assert two.losses == pytest.approx(one.losses, rel=1e-3)
