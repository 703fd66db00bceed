"""Runs with products in bfloat16 (`train.matmul`), on a machine where those are twice as fast.

1. Cut and resumed, such a run ends bit-identical to the uninterrupted one, and not as in float32.
2. It keeps to what it began with, and one that would be slower is refused.
3. The self-test of the model knows what is rounded: it passes, and still finds what is wrong.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from causal_core.checkpoints.contents import verify_checkpoint
from causal_core.checkpoints.store import CheckpointStore
from causal_core.errors import ModelError, UserError
from causal_core.model import matmul
from causal_core.model.device_costs import Measurements
from causal_core.run.context import LocalContext
from causal_core.run.loop import train
from causal_core.run.session import open_session
from tests.tiny_run import tiny_config

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def twice_as_fast(monkeypatch):
    monkeypatch.setattr("causal_core.model.device_costs.bfloat16_speed", lambda library: 2.0)
    with matmul.using(matmul.in_use()):
        yield


@pytest.fixture
def make(tiny_model_directory, tiny_data, tmp_path):
    def config(name="run", **of_training):
        of_training = {"matmul": "bfloat16", **of_training}
        return tiny_config(tiny_model_directory, tiny_data, tmp_path / name, train=of_training)

    return config


def final_files(config, tmp_path, name, *stops):
    for stop in (*stops, None):
        train(config, LocalContext(tmp_path / name, CPU, stop_at=stop))
    with CheckpointStore(str(tmp_path / name / "checkpoints")).newest_whole() as newest:
        files = verify_checkpoint(newest).files
        return {name: f.sha256 for name, f in files.items() if name != "config.yaml"}


def test_a_cut_run_ends_bit_identical_and_not_as_in_float32(make, tmp_path):
    whole = final_files(make("whole"), tmp_path, "whole")
    assert matmul.in_bfloat16()
    assert final_files(make("cut"), tmp_path, "cut", 2) == whole
    assert final_files(make("float32", matmul="float32"), tmp_path, "float32") != whole
    assert not matmul.in_bfloat16()


def test_a_run_keeps_to_what_it_began_with(make, monkeypatch):
    open_session(make(), CPU)
    matmul.use("torch")
    slower = Measurements(65_536.0, "torch", bfloat16_speed=0.5)
    monkeypatch.setattr("causal_core.run.session.measurements_of", lambda *_, **__: slower)
    open_session(make(), CPU)
    assert matmul.in_bfloat16()
    with pytest.raises(UserError, match=r"0\.50 times as fast"):
        open_session(make("another"), CPU)
    open_session(make("a third", matmul="auto"), CPU)
    assert not matmul.in_bfloat16()


def test_products_with_a_fault_are_found(make, monkeypatch, tmp_path):
    def coarse(x, weight, bias):
        """Of operands with two digits of the eight: seven bits too few would be a fault."""
        fine = torch.float8_e5m2
        y = F.linear(x.to(fine).float(), weight.to(fine).float()).mul_(1.2)
        return y if bias is None else y + bias

    config = make()
    config.data.cache_dir = str(tmp_path / "cache")  # where no earlier test has passed
    monkeypatch.setattr(matmul, "_rounded", coarse)
    with pytest.raises(ModelError, match="rounding in bfloat16 explains"):
        open_session(config, CPU)
