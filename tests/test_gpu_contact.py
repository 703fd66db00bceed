"""`make gpu` without a GPU: its parts on tiny shapes, and what it keeps when one of them fails."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from rich.console import Console

from benchmarks import gpu_contact, gpu_parts
from benchmarks.gpu_contact import Outcome, Part, contact, main, page, parts
from benchmarks.gpu_device import Part as Measured
from benchmarks.gpu_device import known_peak
from benchmarks.gpu_parts import config_of, random_base
from causal_core.errors import RunFailedError
from causal_core.memory.architectures import architecture_of

# Writes what it found so far, and then never ends; so does a process that it started.
_HANGS = """
import json, subprocess, sys, time
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
open(sys.argv[1], 'w').write(json.dumps({'child': child.pid}))
time.sleep(600)
"""


def script(name: str, code: str, *arguments: object, limit: float = 60) -> Part:
    return Part(name, "?", [sys.executable, "-c", code, *map(str, arguments)], limit)


def is_running(pid: int) -> bool:
    """A process that has ended may wait for ever to be asked about it."""
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_what_fails_is_named_and_the_rest_stands(tmp_path):
    fails = (
        "import sys; print('[1, 2]'); sys.stderr.write('more\\n'); raise ValueError('no | luck')"
    )
    chosen = [
        script("fails", fails),
        script("hangs", _HANGS, tmp_path / "hangs.json", limit=5),
        script("works", "print('said'); print('{\"a\": 1}')"),
    ]
    outcomes = contact(chosen, tmp_path, 600, Console(quiet=True))
    assert [o.status for o in outcomes] == ["failed", "failed", "ok"]
    assert outcomes[0].why == "exit code 1: ValueError: no | luck" and outcomes[0].found == [1, 2]
    assert outcomes[1].why == "no end within 5 s"
    assert not is_running(outcomes[1].found["child"])  # nothing of it is left
    assert outcomes[2].found == {"a": 1}
    assert json.loads((tmp_path / "contact.json").read_text())[0]["name"] == "fails"
    text = (tmp_path / "contact.md").read_text()
    assert "| fails | ? | failed |" in text and "ValueError: no / luck" in text
    assert "more" in (tmp_path / "fails.log").read_text()


def test_what_does_not_fit_the_budget_is_named_and_not_begun(tmp_path):
    mark = tmp_path / "begun"
    late = script("late", f"open({str(mark)!r}, 'w')")
    (outcome,) = contact([late], tmp_path, 1, Console(quiet=True))
    assert outcome.status == "not run" and "--only late" in outcome.why
    assert not mark.exists()


@pytest.fixture
def few_steps(monkeypatch):
    monkeypatch.setattr(gpu_parts, "_TIMED", 1)


@pytest.mark.usefixtures("few_steps")
def test_a_step_is_measured_beside_its_plan(tmp_path):
    """In this process; as `make gpu` starts it, it is a slow test."""
    part = Measured(tmp_path / "step-1B.json", tiny=True)
    gpu_parts.step(part, "1B")
    found = json.loads(part.file.read_text())
    for layout in ("rows", "flat"):
        assert found[layout]["losses"][-1] < found[layout]["losses"][0]
        memory = found[layout]["memory"]
        # The planner's own bound for a run; it is called off beyond.
        assert memory["predicted_bytes"] == pytest.approx(memory["measured_bytes"], rel=0.1)
    assert "a GPU alone" in found["compiled"]["skipped"]
    text = page([Outcome("step-1B", "ok", 1.0, found=found)], {"step-1B": "?"})
    assert "| 1B | rows | 0." in text and "| 1B | flat | " in text


@pytest.mark.usefixtures("few_steps")
def test_a_layout_that_fails_is_named_and_others_are_measured(tmp_path, monkeypatch):
    measured = gpu_parts._Job.measured

    def fails_in_rows(job, packing):
        if not packing.flat:
            raise RuntimeError("no kernel\nfor this")
        return measured(job, packing)

    monkeypatch.setattr(gpu_parts._Job, "measured", fails_in_rows)
    part = Measured(tmp_path / "step.json", tiny=True)
    with pytest.raises(RunFailedError, match="rows"):
        gpu_parts.step(part, "1B")
    found = json.loads(part.file.read_text())
    assert found["rows"] == {"failed": "RuntimeError: no kernel"} and found["flat"]["seconds"]


def test_a_size_beyond_the_device_is_not_begun(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_parts, "device_memory_bytes", lambda device: 2**20)
    monkeypatch.setattr(gpu_parts, "random_base", None)
    part = Measured(tmp_path / "step.json", tiny=True)
    gpu_parts.step(part, "8B")
    assert "the device has 0.0 GiB" in json.loads(part.file.read_text())["skipped"]


def test_a_random_base_is_what_the_loader_makes(tmp_path):
    """Of the same modules and types as a model that was quantised while it was loaded."""
    from transformers import AutoModelForCausalLM

    from causal_core.pretrained.loading import load_base

    config = config_of(Measured(tmp_path / "part.json", tiny=True), "1B")
    architecture = architecture_of(config.model)
    made = random_base(architecture, config, torch.device("cpu"))
    whole = AutoModelForCausalLM.from_config(architecture, dtype=torch.bfloat16)
    whole.save_pretrained(config.model.name_or_path)
    loaded = load_base(config.model, torch.device("cpu"))

    def described(model):
        return {n: (type(m).__name__, sorted(m._parameters)) for n, m in model.named_modules()}

    def weights(model):
        return {n: (p.dtype, p.shape, p.requires_grad) for n, p in model.named_parameters()}

    assert described(made) == described(loaded)
    assert weights(made) == weights(loaded)
    assert made.config.num_hidden_layers == loaded.config.num_hidden_layers


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121), ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA A1000", None), ("AMD EPYC", None),
    ],
)  # fmt: skip
def test_a_card_is_known_by_its_whole_name(name, tera):
    found = known_peak(name)
    assert (found and found[0] / 1e12) == tera


@pytest.mark.slow
def test_all_parts_on_a_cpu(tmp_path, monkeypatch):
    # The limits keep to the minutes that a GPU is lent for; a busy CPU is given what it takes.
    patient = [replace(part, limit=1800.0) for part in parts(tmp_path, tiny=True)]
    monkeypatch.setattr(gpu_contact, "parts", lambda out, tiny: patient)
    command = ["gpu_contact", "--tiny", "--out", str(tmp_path), "--budget", "3000"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit):
        main()
    outcomes = {o["name"]: o for o in json.loads((tmp_path / "contact.json").read_text())}
    for name in ("machine", "step-1B", "step-3B", "step-8B", "profile", "resume"):
        assert outcomes[name]["status"] == "ok", (name, outcomes[name]["why"])
    text = (tmp_path / "contact.md").read_text()
    for head in ("The device", "The optimizer step", "An interrupted run", "2 steps of a 1B"):
        assert f"## {head}" in text
    assert (tmp_path / "trace.json.gz").stat().st_size
    assert all(Path(tmp_path / f"{name}.log").exists() for name in outcomes)
