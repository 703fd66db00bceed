"""The rehearsed step: changes nothing, sees what a plan lacks, and `auto` leaves room for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from causal_core.memory import largest_micro_batch, predict
from causal_core.memory.measure import MemoryMeter
from causal_core.memory.plan import Calibration
from causal_core.run.context import LocalContext
from causal_core.run.loop import train
from causal_core.run.session import open_session
from tests.tiny_run import tiny_config

CPU = torch.device("cpu")
MIB = 2**20


def run(tiny, directory, **sections):
    config = tiny_config(*tiny, directory, **sections)
    summary = train(config, LocalContext(directory, CPU))
    return summary, (directory / "metrics.jsonl").read_text(encoding="utf-8")


def test_a_rehearsal_changes_nothing_and_finds_what_was_planned(tiny, tmp_path):
    plain, before = run(tiny, tmp_path / "plain")
    rehearsed, after = run(tiny, tmp_path / "probe", resources={"workers": 0, "probe_memory": True})
    assert before == after, "dropout, gradients and optimizer are as without it"
    assert "probe" not in plain["memory"]
    found = rehearsed["memory"]["probe"]
    assert abs(found["constant_bytes"]) < 0.03 * found["measured_bytes"]
    assert 100 * MIB < found["outside_bytes"] < 4096 * MIB, "Python with torch imported"


def test_auto_gives_the_same_course_and_keeps_the_budget(tiny, tmp_path):
    """Largest that fits, with room for what the rehearsal found, and the same losses."""
    _, fixed = run(tiny, tmp_path / "fixed", lora={"rank": 2, "dropout": 0.0})
    sections = {
        "lora": {"rank": 2, "dropout": 0.0},
        "train": {"micro_batch_tokens": "auto"},
        "resources": {"workers": 0, "gpu_memory": "8GiB", "probe_memory": True},
    }
    config = tiny_config(*tiny, tmp_path / "opened", **sections)
    session = open_session(config, CPU)
    assert session.calibration is not None
    plan = predict(config, micro_batch_tokens=session.token_budget, device="cpu")
    assert session.token_budget >= 64
    assert session.calibration.required_bytes(plan) <= 8 * 2**30
    _, automatic = run(tiny, tmp_path / "auto", **sections)
    assert losses(automatic) == pytest.approx(losses(fixed), rel=1e-5)


def losses(text):
    return [r["loss"] for r in map(json.loads, text.splitlines()) if "grad_norm" in r]


def test_what_a_plan_lacks_makes_the_micro_batch_smaller(tiny, tmp_path):
    config = tiny_config(*tiny, tmp_path)
    budget = predict(config, micro_batch_tokens=4096).required_bytes
    assumed = predict(config).outside_bytes
    exact = largest_micro_batch(config, budget, at_least=64)
    same = largest_micro_batch(
        config, budget, at_least=64, calibration=Calibration(100, 100, assumed)
    )
    lacking = largest_micro_batch(
        config, budget, at_least=64, calibration=Calibration(100, 100 + 8 * MIB, assumed)
    )
    assert exact == same
    assert lacking is not None and exact is not None and lacking < exact


def test_a_plan_that_is_off_is_seen(tiny, tmp_path, monkeypatch):
    """The measurement is one: were the step larger than the plan, the probe would say so."""
    measured = MemoryMeter._measured

    def more(self):
        found = measured(self)
        return None if found is None else found + 5 * MIB

    monkeypatch.setattr(MemoryMeter, "_measured", more)
    config = tiny_config(*tiny, Path(tmp_path), resources={"workers": 0, "probe_memory": True})
    calibration = open_session(config, CPU).calibration
    assert calibration is not None
    assert abs(calibration.constant_bytes - 5 * MIB) < 0.05 * calibration.measured_bytes
