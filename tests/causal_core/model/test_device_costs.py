"""What is measured on a device is remembered for it, and a run keeps what it began with."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import causal_core.model.device_costs as measurements_module
from causal_core.config_file import load_config
from causal_core.errors import ConfigError, UserError
from causal_core.model import matmul
from causal_core.model.device_costs import Measurements, measurements_of, takes_bfloat16
from causal_core.run.session import open_session
from tests.tiny import tiny_model
from tests.tiny_run import tiny_config

CPU = torch.device("cpu")


def test_a_device_is_measured_once(tmp_path, monkeypatch):
    model = tiny_model()
    first = measurements_of(model, CPU, tmp_path)
    (entry,) = (tmp_path / "measurements").iterdir()
    assert Measurements.read(entry) == first
    monkeypatch.setattr(measurements_module, "measure", pytest.fail)
    assert measurements_of(model, CPU, tmp_path) == first


def test_processes_that_measure_at_once_take_what_the_first_one_found(tmp_path, monkeypatch):
    first, second = Measurements(2048.0, "torch"), Measurements(65_536.0, "torch")
    model = tiny_model()

    def measure(*_):  # the other one's is written meanwhile
        monkeypatch.setattr(measurements_module, "measure", lambda *_: first)
        measurements_of(model, CPU, tmp_path)
        return second

    def speed(_):
        monkeypatch.setattr(measurements_module, "bfloat16_speed", lambda _: 3.0)
        measurements_of(model, CPU, tmp_path, bfloat16=True)
        return 2.0

    monkeypatch.setattr(measurements_module, "measure", measure)
    monkeypatch.setattr(measurements_module, "bfloat16_speed", speed)
    assert measurements_of(model, CPU, tmp_path) == first
    asked = measurements_of(model, CPU, tmp_path, bfloat16=True)
    assert asked == replace(first, bfloat16_speed=3.0)


@pytest.mark.parametrize(
    "content",
    ["damaged", "[]", "{}", '{"packing_cost": 1, "products": "cublas"}', '{"packing_cost": null}'],
)
def test_an_entry_that_cannot_be_understood_is_measured_again(tmp_path, monkeypatch, content):
    model = tiny_model()
    measurements_of(model, CPU, tmp_path)
    (entry,) = (tmp_path / "measurements").iterdir()
    entry.write_text(content)
    again = Measurements(4096.0, "torch")
    monkeypatch.setattr(measurements_module, "measure", lambda *_: again)
    assert measurements_of(model, CPU, tmp_path) == again == Measurements.read(entry)


def test_onednn_is_not_taken_from_a_machine_that_has_it(tmp_path, monkeypatch):
    path = tmp_path / "measurements.json"
    path.write_text(json.dumps({"packing_cost": 2048.0, "products": "onednn"}))
    monkeypatch.setattr(matmul, "has_onednn", lambda: False)
    assert Measurements.read(path) is None


def test_a_cache_that_cannot_be_written_only_costs_time(tmp_path):
    (tmp_path / "measurements").write_text("a file where the directory would be")
    assert measurements_of(tiny_model(), CPU, tmp_path).packing_cost > 0


def test_a_run_keeps_what_it_began_with(tiny_model_directory, tiny_data, tmp_path, monkeypatch):
    config = tiny_config(tiny_model_directory, tiny_data, tmp_path / "run")
    monkeypatch.setattr(matmul, "_library", "torch")
    began = Measurements(2048.0, "torch")
    monkeypatch.setattr("causal_core.run.session.measurements_of", lambda *_, **__: began)
    first = open_session(config, CPU)
    later = Measurements(65_536.0, "onednn" if matmul.has_onednn() else "torch")
    monkeypatch.setattr("causal_core.run.session.measurements_of", lambda *_, **__: later)
    second = open_session(config, CPU)
    assert first.packing == second.packing and first.packing.call_cost == 2048.0
    assert matmul.in_use() == "torch"


def test_bfloat16_is_measured_where_it_is_asked_for(tmp_path, monkeypatch):
    model = tiny_model()
    plain = measurements_of(model, CPU, tmp_path)
    assert plain.bfloat16_speed is None
    monkeypatch.setattr(measurements_module, "bfloat16_speed", lambda library: 2.0)
    monkeypatch.setattr(measurements_module, "measure", pytest.fail)
    asked = measurements_of(model, CPU, tmp_path, bfloat16=True)
    assert asked == replace(plain, bfloat16_speed=2.0)
    monkeypatch.setattr(measurements_module, "bfloat16_speed", pytest.fail)
    assert measurements_of(model, CPU, tmp_path, bfloat16=True) == asked


def test_bfloat16_is_taken_where_it_is_faster_and_refused_where_it_is_not():
    assert takes_bfloat16("bfloat16", 2.0) and takes_bfloat16("auto", 2.0)
    assert not takes_bfloat16("auto", 1.05) and not takes_bfloat16("float32", 2.0)
    assert not takes_bfloat16("auto", None)
    with pytest.raises(UserError, match=r"0\.43 times as fast .* set train\.matmul=float32"):
        takes_bfloat16("bfloat16", 0.43)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["resources.gpus_per_worker=1"], r"gpus_per_worker=1: .*model\.dtype=bfloat16"),
        (["model.dtype=bfloat16"], "in that type already"),
        (["model.quantization=nf4"], "bitsandbytes"),
        (["engine=deepspeed", "deepspeed.zero_stage=3"], "zero_stage=3"),
    ],
)
def test_what_bfloat16_products_cannot_be_part_of_is_refused(overrides, reason):
    with pytest.raises(ConfigError, match=reason):
        load_config(None, [*overrides, "train.matmul=bfloat16"])
    config = load_config(None, [*overrides, "train.matmul=auto"])
    assert config.frozen_products() == "float32"
