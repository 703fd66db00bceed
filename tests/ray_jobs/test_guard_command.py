"""`causal guard` on a tiny run: what it keeps, and that vectors are those of prompts alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from causal_core.config import run_directory
from causal_core.config_file import recorded_config
from causal_core.evaluation.representations import HEAD, MEAN, represent
from causal_core.evaluation.subject import in_memory
from causal_core.tokens.run_data import load_encoder, load_test_set
from ray_jobs.cli import main
from ray_jobs.guard_command import FOLDER, RECORD, WEIGHTS, run_guard
from ray_jobs.run import run_training
from ray_jobs.subjects import run_subject
from tests.command_line import command
from tests.tiny_run import tiny_config

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tiny_model_directory, tiny_data, tmp_path_factory):
    config = tiny_config(
        tiny_model_directory,
        tiny_data,
        tmp_path_factory.mktemp("guarded") / "run",
        train={"max_steps": 1, "global_batch": 4, "learning_rate": 0.01},
        loss={"preset": "contrastive"},
    )
    run_training(config, Console(quiet=True), test=False)
    return run_directory(config)


def test_what_it_keeps(run, tiny_data):
    result = run_guard(run, fit=str(tiny_data / "train.jsonl"), false_positives=0.1)
    assert json.loads((run / FOLDER / RECORD).read_text()) == json.loads(json.dumps(result))
    assert set(result["sets"]) == {"seen", "novel"}
    for found in result["sets"].values():
        assert set(found["detectors"]) == {HEAD, MEAN, "length", "words"}
        assert found["clean"] == found["attacked"] == 6
    kept = load_file(run / FOLDER / WEIGHTS)
    assert kept["weight"].shape == (32,) and kept["threshold"].isfinite()
    shown = command(main, "guard", run, "--fit", tiny_data / "train.jsonl")
    assert shown.returncode == 0 and "length and words do" in shown.stdout


def test_vectors_are_those_of_each_prompt_alone(run):
    config = recorded_config(run, False)
    encoder = load_encoder(config)
    dataset = load_test_set(config, encoder, config.data.test["novel"])
    for _, model in in_memory([run_subject(run, config)], CPU):
        found = represent(model, dataset, CPU, budget=500)
        model.eval().double()
        tokens = dataset.tokens(2)
        decoder = model.peft_model.get_base_model().get_decoder()
        for place, prompt in enumerate((tokens.benign, tokens.only.prompt)):
            ids = torch.tensor([[*tokens.system, *prompt]])
            with torch.no_grad():
                mean = decoder(input_ids=ids).last_hidden_state.mean(1)
            expected = torch.from_numpy(found.vectors[MEAN][4 + place])
            torch.testing.assert_close(mean[0], expected, rtol=0, atol=1e-4)  # float32 against 64
            assert found.tokens[4 + place] == ids.shape[1]
        assert not found.attacked[4] and found.attacked[5] and found.row[5] == 2


def test_bad_input(run, tmp_path):
    few = tmp_path / "few.jsonl"
    rows = Path(recorded_config(run, False).data.validation[0]).read_text(encoding="utf-8")
    few.write_text("".join(rows.splitlines(keepends=True)[:3]), encoding="utf-8")
    outcome = command(main, "guard", run, "--fit", few)
    assert outcome.returncode == 1 and "3 rows have an attack, at least 8" in outcome.stderr
    outcome = command(main, "guard", tmp_path)
    assert outcome.returncode == 1
