"""`causal init` writes a config that loads as it was planned, and that fits the device."""

from __future__ import annotations

import jsonschema
import pytest
import yaml

from causal_core.amounts import card_bytes
from causal_core.config_file import load_config
from causal_core.config_reference import schema
from causal_core.memory.fit import predict_run
from ray_jobs.cli import main
from tests.command_line import command


def init(*arguments):
    return command(main, "init", *arguments)


def test_the_config_fits_data_and_machine(tiny_model_directory, tiny_data, tmp_path):
    path = tmp_path / "mine.yaml"
    outcome = init(path, "--model", tiny_model_directory, "--data", tiny_data)
    assert outcome.returncode == 0, outcome.stderr
    config = load_config(path)
    assert config.run.dir == "runs/mine"
    assert set(config.data.test) == {"seen", "novel"}
    assert config.data.train == [str(tiny_data / "train.jsonl")]
    assert config.data.max_length % 64 == 0
    jsonschema.validate(yaml.safe_load(path.read_text()), schema())
    assert command(main, "plan", path).returncode == 0
    again = init(path, "--model", tiny_model_directory)
    assert again.returncode == 1 and "--force" in again.stderr
    assert init(path, "--model", tiny_model_directory, "--force").returncode == 0


@pytest.mark.parametrize("card", ["RTX2060", "H100"])
def test_memory_is_planned_for_the_card(tiny_model_directory, tmp_path, card):
    path = tmp_path / "mine.yaml"
    assert init(path, "--model", tiny_model_directory, "--gpu", card).returncode == 0
    config = load_config(path)
    assert config.resources.gpus_per_worker == 1
    assert predict_run(config, device="cuda").required_bytes <= card_bytes(card)
    assert "needs" in path.read_text().splitlines()[1]


def test_names_are_only_values(tiny_data, tmp_path, tiny_model_directory):
    hostile = tmp_path / 'a": [b] # c\u202e'
    hostile.mkdir()
    data = hostile / "train.jsonl"
    data.write_bytes((tiny_data / "train.jsonl").read_bytes())
    path = tmp_path / "mine.yaml"
    assert init(path, "--model", tiny_model_directory, "--data", data).returncode == 0
    assert load_config(path).data.train == [str(data)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "./nowhere"], "no such directory"),
        (["--gpu", "RTX9999"], "unknown card"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--data", "."], "holds no train.jsonl"),
    ],
)
def test_bad_input(arguments, message, tiny_model_directory, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "--model" not in arguments:
        arguments = ["--model", tiny_model_directory, *arguments]
    outcome = init("mine.yaml", *arguments)
    assert outcome.returncode == 1 and message in outcome.stderr
    assert not list(tmp_path.iterdir())
