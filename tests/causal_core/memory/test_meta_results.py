"""Remembered layouts of meta tensors against the operations themselves."""

from __future__ import annotations

import gc

import pytest
import torch

from causal_core.config_file import parse_config
from causal_core.memory import meta_results
from causal_core.memory.architectures import architecture_of
from causal_core.memory.shapes import assumed_shape
from causal_core.memory.trace import trace_step
from causal_core.trees.packing import FLAT, INTERVALS, ROWS
from tests.causal_core.model.architectures import ARCHITECTURES

ATEN = torch.ops.aten


def computed(func, args, kwargs):
    """Every operation runs."""
    return func(*args, **kwargs)


def meta(*sizes, **options):
    return torch.empty(*sizes, device="meta", **options)


@pytest.fixture
def runs(monkeypatch):
    """The operations that ran, in a process that knows nothing yet."""
    monkeypatch.setattr(meta_results, "_known", {})
    ran = []

    def counted(operation):
        def run(*args, **kwargs):
            ran.append(operation)
            return operation(*args, **kwargs)

        return run

    cached = {}

    def run(operation, *args, **kwargs):
        func = cached.setdefault(operation, counted(operation))
        return meta_results.run(func, args, kwargs)

    return run, ran


def traced(config, architecture, packing, device="cpu", layers=2):
    """All that a trace says: peaks, components, and every change in its order."""
    shape = assumed_shape(config, 256, packing=packing)
    gc.disable()  # what refers to itself would go at any time
    try:
        found = trace_step(config, architecture, shape, device, layers, with_events=True)
    finally:
        gc.enable()
    sizes = [size for size, _ in found.events]
    while sizes[-1] < 0:  # what a trace leaves goes when it may
        sizes.pop()
    return found.peaks, sizes


@pytest.mark.parametrize(
    "architecture", [a for a in ARCHITECTURES if a.refused is None], ids=lambda a: a.kind
)
def test_of_every_architecture_the_trace_is_the_one_in_which_everything_runs(
    architecture, monkeypatch
):
    config = parse_config(
        {"lora": {"target_modules": architecture.modules}, "loss": {"lambda_preference": 1.0}}
    )
    found = traced(config, architecture.config(), FLAT)
    monkeypatch.setattr("causal_core.memory.tracker.run", computed)
    assert found == traced(config, architecture.config(), FLAT)


@pytest.mark.parametrize(
    ("sections", "packing", "device"),
    [
        ({"train": {"gradient_checkpointing": True}}, ROWS, "cuda"),
        ({"train": {"optimizer": "adamw_8bit"}, "lora": {"dropout": 0.1}}, INTERVALS, "cuda"),
        ({"model": {"quantization": "nf4"}}, ROWS, "cuda"),
        ({"train": {"matmul": "bfloat16"}}, FLAT, "cpu"),
    ],
    ids=["checkpointing", "8-bit", "nf4", "bfloat16 products"],
)
def test_so_it_is_with_every_lever(sections, packing, device, monkeypatch):
    config = parse_config(sections)
    architecture = architecture_of(parse_config({"model": {"name_or_path": "demo"}}).model)
    found = traced(config, architecture, packing, device)
    monkeypatch.setattr("causal_core.memory.tracker.run", computed)
    assert found == traced(config, architecture, packing, device)


def test_what_a_trace_did_once_it_does_not_do_again(monkeypatch):
    config = parse_config({})
    architecture = architecture_of(config.model.model_copy(update={"name_or_path": "demo"}))
    monkeypatch.setattr(meta_results, "_known", {})
    traced(config, architecture, FLAT)
    known, described = len(meta_results._known), []
    monkeypatch.setattr(meta_results, "_described", lambda *of: described.append(of))
    traced(config, architecture, FLAT)
    assert known == len(meta_results._known) and not described


def test_a_fresh_result_is_made_without_the_operation(runs):
    run, ran = runs
    for _ in range(3):
        found = run(ATEN.mm.default, meta(3, 4), meta(4, 5))
        assert found.shape == (3, 5) and found.is_meta
    assert len(ran) == 1
    assert run(ATEN.mm.default, meta(3, 4), meta(4, 6)).shape == (3, 6)
    assert (
        run(ATEN.mm.default, meta(3, 4).bfloat16(), meta(4, 5).bfloat16()).dtype == torch.bfloat16
    )


def test_strides_and_numbers_tell_results_apart(runs):
    run, _ = runs
    plain = run(ATEN.clone.default, meta(3, 4))
    turned = run(ATEN.clone.default, meta(4, 3).t())
    assert plain.stride() == (4, 1) and turned.stride() == (1, 3)
    assert run(ATEN.sum.dim_IntList, meta(3, 4), [0]).shape == (4,)
    assert run(ATEN.sum.dim_IntList, meta(3, 4), [1]).shape == (3,)
    assert run(ATEN.add.Tensor, meta(3, dtype=torch.long), 1).dtype == torch.long
    assert run(ATEN.add.Tensor, meta(3, dtype=torch.long), 1.0).dtype == torch.float32
    assert run(ATEN.add.Tensor, meta(3, dtype=torch.long), True).dtype == torch.long


def test_views_share_what_they_look_at_and_fresh_results_nothing(runs):
    run, ran = runs
    for _ in range(2):
        given = meta(3, 4)
        view = run(ATEN.view.default, given, [12])
        assert view.untyped_storage()._cdata == given.untyped_storage()._cdata
    assert len(ran) == 2  # every time
    made = {run(ATEN.neg.default, given).untyped_storage()._cdata for _ in range(1)}
    assert given.untyped_storage()._cdata not in made


def test_in_place_it_is_the_tensor_that_was_given(runs):
    run, ran = runs
    for _ in range(3):
        a, b, c = meta(3), meta(3), meta(3)
        assert run(ATEN.add_.Tensor, a, b) is a
        assert run(ATEN.add.out, a, b, out=c) is c
        assert run(ATEN.add.out, a, b, out=a) is a  # not as of three different ones
    assert len(ran) == 3


def test_what_changes_an_input_runs_every_time(runs):
    run, ran = runs
    for _ in range(3):
        given = meta(3)
        run(ATEN.resize_.default, given, [8])
        assert given.shape == (8,)
    assert len(ran) == 3


def test_other_devices_and_what_takes_no_tensor_run_every_time(runs):
    run, ran = runs
    one, two = torch.tensor([1.0]), torch.tensor([2.0])
    assert run(ATEN.neg.default, one) == -1 and run(ATEN.neg.default, two) == -2
    for _ in range(2):
        assert run(ATEN.empty.memory_format, [3], device="meta").shape == (3,)
    assert len(ran) == 4
