"""The demo around a tiny model: what it makes, and what it says of how it was made.

Beside each other control and defended model become what they are one after the other; a control
that fails is told in words, and one whose demo is stopped or dies leaves a checkpoint.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import yaml

from causal_core.checkpoints.contents import verify_checkpoint
from causal_core.config_file import parse_config
from causal_core.errors import RunFailedError, UserError
from causal_core.model.device_costs import Measurements
from causal_core.run.session import MEASUREMENTS
from causal_core.yaml_file import read_yaml
from ray_jobs import demo
from ray_jobs.beside import Beside, beside
from ray_jobs.training import process
from ray_jobs.training.ray_session import sharing_cores, worker_threads
from tests.run_process import last_step, wait_until
from tests.tiny_run import metric_lines, tiny_config

SIZES = {"train": 8, "validation": 2, "test_seen": 3, "test_novel": 3}


@pytest.fixture
def tiny(tiny_model_directory, tiny_data, tmp_path, monkeypatch):
    """A demo of a tiny model in this process; returns its directory."""
    tree = tiny_config(tiny_model_directory, tiny_data, tmp_path / "run").model_dump(mode="json")
    own = {key: tree[key] for key in ("model", "lora", "train", "evaluation", "resources")}
    own["train"]["matmul"] = own["evaluation"]["matmul"] = "auto"
    (tmp_path / "demo.yaml").write_text(yaml.safe_dump(own), encoding="utf-8")
    monkeypatch.setattr(demo, "CONFIG", tmp_path / "demo.yaml")
    monkeypatch.setattr(demo, "_SIZES", SIZES)
    monkeypatch.setenv("CAUSAL_RAY_CACHE", str(tmp_path / "cache"))
    # Another test may have connected to Ray, whose workers know another cache, and what was
    # measured there decides last digits.
    monkeypatch.setattr(process, "_connected_to_ray", lambda: False)
    return tmp_path / "demo"


@pytest.fixture
def two(tiny, monkeypatch):
    """The same where there is room for two."""
    monkeypatch.setattr(demo, "_has_room_for_two", lambda _: True)
    settings = read_yaml(demo.CONFIG)
    settings["resources"]["workers"] = 1
    demo.CONFIG.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return tiny


def evaluated(directory):
    return json.loads((directory / "defended" / "summary.json").read_text())["evaluation"]


def test_a_demo_evaluates_base_control_and_defended_and_is_done_once(tiny, capsys):
    demo.run_demo(tiny)
    said = capsys.readouterr().out
    assert list(evaluated(tiny)["models"]) == ["base", "control", "trained"]
    assert {s["n"] for m in evaluated(tiny)["models"].values() for s in m["sets"].values()} == {3}
    assert "The demo took" in said and f"evaluated in {evaluated(tiny)['matmul']}." in said
    demo.run_demo(tiny)
    assert "finished already" in capsys.readouterr().out


@pytest.mark.long
def test_side_by_side_comes_out_as_one_by_one(two, tmp_path, monkeypatch, capsys):
    real = Beside.evaluate
    shared = []

    def watched(self, tests, checkpoints):
        shared.append((list(tests), list(checkpoints)))
        real(self, tests, checkpoints)

    monkeypatch.setattr(Beside, "evaluate", watched)
    monkeypatch.setattr(Beside, "is_free", lambda self: self.found() is not None)  # however slow
    demo.run_demo(two)
    assert shared == [(["seen"], ["trained"])]
    assert "control.log" in capsys.readouterr().out
    beside_log = (two / "control.log").read_text()
    assert "train 2/2" in beside_log and "memory" not in beside_log  # the other one is planned
    assert all((two / run / "report.html").is_file() for run in ("control", "defended"))
    monkeypatch.setattr(demo, "_has_room_for_two", lambda _: False)
    demo.run_demo(tmp_path / "one by one")
    assert evaluated(two) == evaluated(tmp_path / "one by one")
    for run in ("control", "defended"):
        logs = [metric_lines(directory / run) for directory in (two, tmp_path / "one by one")]
        assert logs[0] == logs[1]


def test_two_programs_have_half_of_the_cores_each(monkeypatch):
    monkeypatch.setattr("causal_core.device.available_cores", lambda: 8)
    config = parse_config({"data": {"train": "none"}, "resources": {"workers": 1}})
    with sharing_cores(2):
        assert worker_threads(config) == 4
    assert worker_threads(config) == 8


def test_it_takes_two_at_a_time_where_cores_and_memory_are_enough(monkeypatch):
    config = parse_config({"data": {"train": "none"}, "resources": {"workers": 1}})
    monkeypatch.setattr(demo, "runs_alone", lambda _: True)  # whatever other tests connected to
    for cores, free, room in ((2, 2**34, True), (1, 2**34, False), (2, 2**32, False)):
        monkeypatch.setattr(demo, "available_cores", lambda cores=cores: cores)
        monkeypatch.setattr(demo, "device_memory_bytes", lambda _, free=free: free)
        assert demo._has_room_for_two(config) is room


@pytest.fixture
def config(tiny_model_directory, tiny_data, tmp_path):
    own = {
        "resources": {"workers": 1, "threads": 1},
        "train": {"epochs": 1000},
        "checkpoint": {"every_steps": 1000},
    }
    return tiny_config(tiny_model_directory, tiny_data, tmp_path / "control", **own)


@pytest.mark.long
def test_a_process_beside_that_fails_says_why(config, tmp_path):
    config.data.train = [str(tmp_path / "gone.jsonl")]
    told, said = [], r"^the control: .*gone\.jsonl.* is in .*log$"
    with beside(config, {"base": None}, tmp_path / "log", told.append) as process:
        wait_until(lambda: told, "word of it, with nobody asking")
        assert re.match(said, told[0])
        for ask in (process.is_free, process.found):
            with pytest.raises(UserError, match=said):
                ask()
    assert len(told) == 1
    assert "gone.jsonl" in (tmp_path / "log").read_text()


@pytest.mark.long
@pytest.mark.parametrize("ends", ["stopped", "died"])
def test_a_process_beside_leaves_a_checkpoint_when_its_demo_ends(config, tmp_path, ends):
    run = tmp_path / "control"
    told = []
    with beside(config, {"base": None}, tmp_path / "log", told.append) as process:
        wait_until(lambda: last_step(run) >= 1, "a step")
        assert not process.is_free()
        if ends == "died":
            process._process.stdin.close()
            with pytest.raises(RunFailedError, match=r"^the control: stopped at step \d+ of"):
                process.found()
    assert process._process.returncode == 0
    assert len(told) == (ends == "died")  # what was asked for is no news
    [*_, newest] = sorted((run / "checkpoints").glob("step-*"))
    assert verify_checkpoint(newest)


@pytest.mark.parametrize(
    ("speed", "said"), [(1.9, "bfloat16, 1.9 times"), (0.4, "Trained in float32, evaluated")]
)
def test_it_says_which_products_its_config_chose(tmp_path, speed, said):
    config = parse_config(read_yaml(demo.CONFIG))
    assert config.train.matmul == config.evaluation.matmul == "auto"
    measured = Measurements(packing_cost=1.0, products="torch")
    replace(measured, bfloat16_speed=speed).write(tmp_path / MEASUREMENTS)
    told = demo._products(tmp_path, "float32")
    assert said in told and told.endswith("evaluated in float32.")
