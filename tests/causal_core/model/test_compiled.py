"""Compiled decoder layers are the same layers.

1. They compile in one piece, without a break, in a GPU's layouts and with checkpointing; loss and
   gradients equal those of the layers as they are.
2. Micro-batches of other lengths, and layers however many, need no code of their own.
3. In evaluation mode the layers are as they were; taken back, in training, too.
4. `train.compile: auto` compiles on a GPU alone, where measured to compute the same and faster, and
   says why not.

By the backend `aot_eager`, which takes a graph and its backward and runs them without a compiler.
"""

from __future__ import annotations

import logging

import pytest
import torch
from torch._dynamo.utils import counters

from causal_core.config import LoraSection, LossSection, ModelSection, TrainSection
from causal_core.config_file import parse_config
from causal_core.engines.plain import PlainEngine
from causal_core.errors import ConfigError
from causal_core.loss.objective import needs_of
from causal_core.model.causal_model import build_model
from causal_core.model.compiled import compile_layers, leave_layers
from causal_core.pretrained.loading import load_base
from causal_core.run import compiling
from causal_core.trees.packing import INTERVALS, ROWS, cut_micro_batches
from tests.tiny import (
    ALL_TERMS,
    gradients,
    micro_batch_gradient,
    random_triplets,
    relative_error,
    tiny_base,
    tiny_model,
)
from tests.tiny_run import write_tiny_model

pytestmark = pytest.mark.long

LOSS = LossSection(**ALL_TERMS)
CPU = torch.device("cpu")
LAYERS = 4  # more than one graph for the first layer and one for the rest


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def compiled(model):
    compile_layers(model, backend="aot_eager", fullgraph=True)
    return model


def layered_model(checkpointing):
    base, lora = tiny_base(layers=LAYERS), LoraSection(rank=4, alpha=8, dropout=0.0)
    model = build_model(base, lora, 0, checkpointing)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.trainable_parameters().values():
        with torch.no_grad():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.double().train()


def computed(model, packing, budget):
    triplets = random_triplets(12, seed=1)
    model.zero_grad(set_to_none=True)
    cut = cut_micro_batches(triplets, needs_of(LOSS), budget, packing)
    total = sum(micro_batch_gradient(model, micro.batch, LOSS, triplets) for micro in cut)
    return total, gradients(model), {micro.batch.input_ids.shape for micro in cut}


def one_micro_batch(packing):
    (micro,) = cut_micro_batches(random_triplets(2, seed=1), needs_of(LOSS), 10_000, packing)
    return micro.batch


@pytest.mark.parametrize(
    "checkpointing",
    [
        pytest.param(False, marks=pytest.mark.slow, id="kept"),
        pytest.param(True, id="checkpointed"),  # what is kept as well is computed twice there
    ],
)
@pytest.mark.parametrize(
    "packing",
    [
        pytest.param(ROWS, marks=pytest.mark.slow, id="rows"),
        pytest.param(INTERVALS, id="intervals"),
    ],
)
def test_layers_compile_whole_and_compute_the_same(packing, checkpointing):
    """In training mode; in evaluation mode, and taken back, the layers are as they were."""
    model = layered_model(checkpointing)
    expected, by_layers, shapes = computed(model, packing, 150)
    compiled(model).eval()
    model(one_micro_batch(packing))
    assert not counters["stats"]
    found, by_compiled, _ = computed(model.train(), packing, 150)
    assert not counters["graph_break"]
    assert found == pytest.approx(expected, rel=1e-10)
    assert relative_error(by_compiled, by_layers) < 1e-10
    graphs = counters["stats"]["unique_graphs"]
    # The first layer's input needs no gradient: it may be a case of its own.
    assert 0 < graphs <= 2 < len(model.compiled_layers)
    _, _, others = computed(model, packing, 300)
    assert others - shapes and counters["stats"]["unique_graphs"] == graphs
    leave_layers(model)
    counters.clear()
    model(one_micro_batch(packing))
    assert not counters["stats"] and model.training


@pytest.mark.slow
def test_four_bit_layers_with_dropout_compile_whole(tmp_path):
    """What the GPU presets train."""
    directory = write_tiny_model(tmp_path, hidden=128)
    section = ModelSection(name_or_path=str(directory), quantization="nf4", dtype="bfloat16")
    model = build_model(load_base(section, CPU), LoraSection(dropout=0.05), 0, True).train()
    _, found, _ = computed(compiled(model), INTERVALS, 150)
    assert not counters["graph_break"] and 0 < counters["stats"]["unique_graphs"] <= 2
    assert all(gradient.isfinite().all() for gradient in found.values())


CONFIG = parse_config({"train": {"micro_batch_tokens": 200}, "loss": {"preset": "contrastive"}})


def measured(monkeypatch, caplog, compile_layers, ticks):
    """`_is_faster` with that compiler and a clock that takes those seconds for each repeat."""
    repeats, clock = iter(ticks), [0.0]

    def perf_counter():
        if measured.begun:
            clock[0] += next(repeats)
        measured.begun = not measured.begun
        return clock[0]

    measured.begun = False
    monkeypatch.setattr(compiling, "compile_layers", compile_layers)
    monkeypatch.setattr(compiling.time, "perf_counter", perf_counter)
    model = tiny_model(dropout=0.5)  # left out while both ways are compared
    engine = PlainEngine(model, TrainSection(), CPU)
    with caplog.at_level(logging.INFO):
        found = compiling._is_faster(
            CONFIG, engine, INTERVALS, random_triplets(2, seed=1), 200, CPU
        )
    assert all(p.grad is None for p in engine.parameters.values())
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.5}
    return found


@pytest.mark.parametrize(
    ("seconds", "faster", "word"),
    [(0.5, True, "are compiled: 500 ms"), (0.98, False, "stay as they are: 980 ms")],
)
def test_what_is_measured_decides_and_is_said(monkeypatch, caplog, seconds, faster, word):
    ticks = [9.0, 9.0, 1.0, 1.0, 1.0, 60.0, 60.0, *[seconds] * 3]
    assert measured(monkeypatch, caplog, lambda model: None, ticks) is faster
    assert word in caplog.text


def test_layers_that_compute_something_else_stay_with_a_word(monkeypatch, caplog):
    def wrong(model):
        model.peft_model.get_base_model().get_decoder().norm.weight.mul_(1.5)

    assert measured(monkeypatch, caplog, wrong, [2.0] * 5 + [1.0] * 5) is False
    assert "compute something else: gradients are" in caplog.text


def test_layers_that_cannot_be_compiled_stay_with_a_word(monkeypatch, caplog):
    def broken(model):
        raise RuntimeError("no compiler on this machine\nand much more")

    assert measured(monkeypatch, caplog, broken, [1.0] * 5) is False
    assert "cannot be compiled here: RuntimeError: no compiler on this machine" in caplog.text
    assert "and much more" not in caplog.text


def test_auto_leaves_the_layers_of_a_cpu_alone(monkeypatch):
    engine = PlainEngine(tiny_model(), TrainSection(), CPU)
    choose = compiling.compile_where_faster
    assert choose(CONFIG, engine, INTERVALS, random_triplets(2, seed=1), 200, CPU, None) is None
    assert not engine.model.compiled_layers
    on = CONFIG.model_copy(update={"train": CONFIG.train.model_copy(update={"compile": "on"})})
    with pytest.raises(ConfigError, match="compile=on on a CPU"):
        choose(on, engine, INTERVALS, [], 200, CPU, None)
    cuda = torch.device("cuda")
    assert choose(on, engine, INTERVALS, [], 200, cuda, None) is None
    assert len(engine.model.compiled_layers) == 2
    leave_layers(engine.model)
    # A run that began with compiled layers goes on with them.
    assert choose(CONFIG, engine, INTERVALS, [], 200, cuda, True) is True
    assert len(engine.model.compiled_layers) == 2
    leave_layers(engine.model)
    assert choose(CONFIG, engine, INTERVALS, [], 200, cuda, False) is False
    assert not engine.model.compiled_layers
