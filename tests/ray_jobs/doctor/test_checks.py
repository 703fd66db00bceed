"""`causal doctor`: a sound machine passes, and what is wrong is named with its remedy."""

from __future__ import annotations

import importlib.metadata
import json
import socket

import pytest

from causal_core.config import Config
from causal_core.config_file import parse_config
from causal_core.errors import UserError
from ray_jobs.doctor import checks as doctor
from ray_jobs.doctor import exercises
from ray_jobs.doctor.check import Check
from ray_jobs.doctor.checks import diagnose, raise_for_failed, report


@pytest.fixture
def config(tmp_path) -> Config:
    return parse_config(
        {"run": {"dir": str(tmp_path / "run")}, "data": {"cache_dir": str(tmp_path)}}
    )


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {f"{check.group}/{check.name}": check for check in checks}


def test_a_sound_machine_passes_and_nothing_is_left_behind(config, tmp_path):
    checks = diagnose(config, engines=False)
    assert {check.group for check in checks} == {"versions", "machine", "disk", "storage", "ports"}
    raise_for_failed(checks)
    assert by_name(checks)["versions/torch"].found == importlib.metadata.version("torch")
    assert not list(tmp_path.iterdir())
    as_json = json.loads(json.dumps(report(checks)))
    assert as_json["ok"] and len(as_json["checks"]) == len(checks)
    assert all(check.advice for check in checks if check.status != "ok")


def test_a_missing_and_an_old_library_are_named(config, monkeypatch):
    def version(name):
        if name == "peft":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.1" if name == "deepspeed" else original(name)

    original = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", version)
    checks = diagnose(config, engines=False)
    found = by_name(checks)
    assert found["versions/peft"].found == "not installed"
    assert "0.1, needs >=" in found["versions/deepspeed"].found
    assert "pip install" in found["versions/deepspeed"].advice
    with pytest.raises(UserError, match="versions/peft"):
        raise_for_failed(checks)


def test_what_a_config_lacks_stands_in_the_line_of_its_kind(config, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(doctor, "_memory", lambda: (2**35, 2**34))
    monkeypatch.setattr(doctor.shutil, "which", lambda _: None)
    monkeypatch.setattr("causal_core.device.device_memory_bytes", lambda _: 2**30)
    sound = by_name(list(doctor._machine(config)))
    assert sound["machine/GPU"].status == "ok" and sound["machine/GPU"].found == "none: runs on CPU"
    config.resources.workers = 64
    crowded = by_name(list(doctor._machine(config)))
    assert crowded["machine/GPU"].status == "ok" and not crowded["machine/GPU"].advice
    assert crowded["machine/memory"].status == "warning"
    assert "no room here for resources.workers=64" in crowded["machine/memory"].advice
    config.resources.workers, config.resources.gpus_per_worker = 2, 1
    bare = by_name(list(doctor._machine(config)))
    assert bare["machine/memory"].advice == "" and bare["machine/GPU"].status == "warning"
    assert bare["machine/GPU"].found == "none here, which is less than this config asks for"
    assert "asks for 2, torch" in bare["machine/GPU"].advice


def test_storage_that_cannot_be_written_fails(config):
    config.checkpoint.storage = "file:///proc/no-such-place"
    check = by_name(diagnose(config, engines=False))["storage/write and read"]
    assert check.status == "failed" and "/proc/no-such-place" in check.found and check.advice


def test_little_disk_and_little_memory_are_said(config, monkeypatch):
    usage = doctor.shutil.disk_usage("/")._replace(free=10**6)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(doctor, "_memory", lambda: (10**9, 10**8))
    found = by_name(diagnose(config, engines=False))
    assert found["disk/run directory"].status == "failed"
    assert found["machine/memory"].status == "warning" and found["machine/memory"].advice


def test_a_port_in_use_is_a_warning(config, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setattr(doctor, "_RAY_PORTS", {"probe": taken.getsockname()[1]})
        check = by_name(diagnose(config, engines=False))["ports/probe"]
    assert check.status == "warning" and "in use" in check.found


@pytest.mark.slow
def test_a_worker_that_dies_fails_its_setting_alone(monkeypatch, tmp_path):
    """Two settings in one job; the first names a base that is not there."""
    broken = {"model": {"name_or_path": str(tmp_path / "nothing")}}
    monkeypatch.setattr(
        exercises,
        "settings",
        lambda on_gpu: [
            exercises.Setting("broken", 1, "mend it", broken),
            exercises.Setting("plain", 1, ""),
        ],
    )
    found = by_name(list(exercises.engine_checks()))
    assert found["engines/broken"].status == "failed"
    assert "no such directory" in found["engines/broken"].found
    assert found["engines/broken"].advice == "mend it"
    assert found["engines/plain"].status == "ok"


@pytest.mark.slow
def test_every_engine_works_here(monkeypatch):
    monkeypatch.setattr(exercises, "_TIMEOUT", 1800.0)  # a busy machine is not a broken one
    checks = list(exercises.engine_checks())
    assert len(checks) == 11
    assert all(check.status == "ok" for check in checks), checks
