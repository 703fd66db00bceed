"""The demo around a tiny model: what it makes, and what it says of how it was made."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import yaml

from causal_core.config_file import parse_config
from causal_core.model.device_costs import Measurements
from causal_core.run.session import MEASUREMENTS
from causal_core.yaml_file import read_yaml
from ray_jobs import demo
from tests.tiny_run import tiny_config

SIZES = {"train": 8, "validation": 2, "test_seen": 3, "test_novel": 3}


@pytest.fixture
def tiny(tiny_model_directory, tiny_data, tmp_path, monkeypatch):
    """A demo of a tiny model in this process; returns its directory."""
    tree = tiny_config(tiny_model_directory, tiny_data, tmp_path / "run").model_dump(mode="json")
    own = {key: tree[key] for key in ("model", "lora", "train", "evaluation", "resources")}
    own["train"]["matmul"] = "auto"
    (tmp_path / "demo.yaml").write_text(yaml.safe_dump(own), encoding="utf-8")
    monkeypatch.setattr(demo, "CONFIG", tmp_path / "demo.yaml")
    monkeypatch.setattr(demo, "_SIZES", SIZES)
    monkeypatch.setenv("CAUSAL_RAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "demo"


def evaluated(directory):
    return json.loads((directory / "defended" / "summary.json").read_text())["evaluation"]


def test_a_demo_evaluates_base_control_and_defended_and_is_done_once(tiny, capsys):
    demo.run_demo(tiny)
    said = capsys.readouterr().out
    assert list(evaluated(tiny)["models"]) == ["base", "control", "trained"]
    assert {s["n"] for m in evaluated(tiny)["models"].values() for s in m["sets"].values()} == {3}
    assert "The demo took" in said and "evaluated in float32" in said
    demo.run_demo(tiny)
    assert "finished already" in capsys.readouterr().out


@pytest.mark.parametrize(("speed", "said"), [(1.9, "bfloat16, 1.9 times"), (0.4, "in float32.")])
def test_it_says_which_products_its_config_chose(tmp_path, speed, said):
    assert parse_config(read_yaml(demo.CONFIG)).train.matmul == "auto"
    measured = Measurements(packing_cost=1.0, products="torch")
    replace(measured, bfloat16_speed=speed).write(tmp_path / MEASUREMENTS)
    assert said in demo._products(tmp_path)
