"""A self-test that passed is not repeated, and any other one is run."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from causal_core.errors import ModelError
from causal_core.files import cache_root
from causal_core.model import matmul
from causal_core.remembered import FOLDER
from causal_core.run import self_tested as module
from causal_core.run.self_tested import self_tested
from causal_core.run.session import open_session
from tests.tiny import random_triplets, tiny_model
from tests.tiny_run import tiny_config

CPU = torch.device("cpu")


@pytest.fixture
def tests_run(monkeypatch):
    """The rows of each self-test that was run."""
    seen = []
    monkeypatch.setattr(
        module, "check_against_own_forward", lambda model, triplets, device: seen.append(triplets)
    )
    return seen


@pytest.fixture
def config(tiny_model_directory, tiny_data, tmp_path):
    directory = shutil.copytree(tiny_model_directory, tmp_path / "model")
    config = tiny_config(directory, tiny_data, tmp_path / "run")
    config.data.cache_dir = str(tmp_path / "cache")
    return config


def test_a_run_on_the_same_model_and_rows_is_not_tested_again(config, tests_run, tmp_path):
    for expected in (1, 1):
        open_session(config, CPU)
        assert len(tests_run) == expected
    weights = tmp_path / "model" / "model.safetensors"
    save_file({k: v * 2 for k, v in load_file(weights).items()}, weights, {"format": "pt"})
    open_session(config, CPU)
    assert len(tests_run) == 2
    config.data.train = config.data.validation  # other rows
    open_session(config, CPU)
    assert len(tests_run) == 3


def test_whatever_it_depends_on_runs_it_again(config, tests_run, monkeypatch):
    model, rows = tiny_model(), random_triplets(2, seed=1)
    self_tested(model, config, "base", rows, CPU)
    self_tested(model, config, "base", rows, CPU)
    assert len(tests_run) == 1
    lora = config.lora.model_copy(update={"rank": 3})
    revised = config.model.model_copy(update={"revision": "b"})
    others = [
        (config, "another", rows),
        (config, "base", [replace(rows[0], benign=[5]), rows[1]]),
        (config.model_copy(update={"lora": lora}), "base", rows),
        (config.model_copy(update={"model": revised}), "base", rows),
    ]
    for number, other in enumerate(others, 2):
        self_tested(model, *other, CPU)
        assert len(tests_run) == number
    for place, name, value in (
        (module, "device_name", lambda device: "another"),
        (matmul, "in_bfloat16", lambda: True),
        (torch, "get_num_threads", lambda: 77),
    ):
        before = len(tests_run)
        with monkeypatch.context() as patch:
            patch.setattr(place, name, value)
            self_tested(model, config, "base", rows, CPU)
        assert len(tests_run) == before + 1, name
    trusting = config.model.model_copy(update={"trust_remote_code": True})
    for _ in range(2):
        before = len(tests_run)
        self_tested(model, config.model_copy(update={"model": trusting}), "base", rows, CPU)
        assert len(tests_run) == before + 1


def test_a_failed_one_is_not_remembered(config, monkeypatch):
    def fails(*_):
        raise ModelError("another model")

    monkeypatch.setattr(module, "check_against_own_forward", fails)
    for _ in range(2):
        with pytest.raises(ModelError, match="another model"):
            self_tested(tiny_model(), config, "base", random_triplets(2, seed=1), CPU)


def test_what_was_kept_of_it_is_looked_at(config, tests_run):
    arguments = (tiny_model(), config, "base", random_triplets(2, seed=1), CPU)
    self_tested(*arguments)
    (entry,) = (cache_root(config.data.cache_dir) / FOLDER).iterdir()
    entry.write_text("false")
    with pytest.raises(ValueError, match="self-test"):
        module._passed(False)
    self_tested(*arguments)
    assert len(tests_run) == 2
