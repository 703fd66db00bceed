"""`causal guard` on a tiny run: what it keeps, and that vectors are those of prompts alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from causal_core import inference
from causal_core.config import run_directory
from causal_core.config_file import recorded_config
from causal_core.errors import UserError
from causal_core.evaluation.guard import ReadOut
from causal_core.evaluation.guard_file import (
    FOLDER,
    RECORD,
    WEIGHTS,
    Guard,
    read_guard,
    write_guard,
)
from causal_core.evaluation.representations import HEAD, MEAN, represent
from causal_core.evaluation.subject import in_memory
from causal_core.export.build import ExportOptions, export_run
from causal_core.tokens.run_data import load_encoder, load_test_set
from ray_jobs.cli import main
from ray_jobs.guard_command import run_guard
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


def test_bad_input(run, tiny_data, tmp_path):
    if not (run / FOLDER / RECORD).exists():  # of a test before this one
        _fit(run, tiny_data)
    few = tmp_path / "few.jsonl"
    rows = Path(recorded_config(run, False).data.validation[0]).read_text(encoding="utf-8")
    few.write_text("".join(rows.splitlines(keepends=True)[:3]), encoding="utf-8")
    kept = (run / FOLDER / RECORD).read_bytes()
    outcome = command(main, "guard", run, "--fit", few)
    assert outcome.returncode == 1 and "a detector that was fitted on" in outcome.stderr
    test = f"mine={recorded_config(run, False).data.test['seen'][0]}"
    outcome = command(main, "guard", run, "--fit", few.parent / "train.jsonl", "--test", test)
    assert outcome.returncode == 1 and "give --force to replace it" in outcome.stderr
    assert (run / FOLDER / RECORD).read_bytes() == kept
    outcome = command(main, "guard", run, "--force", "--fit", few)
    assert outcome.returncode == 1 and "3 rows have an attack, at least 8" in outcome.stderr
    outcome = command(main, "guard", tmp_path)
    assert outcome.returncode == 1


def _fit(run, tiny_data):
    return run_guard(run, fit=str(tiny_data / "train.jsonl"), false_positives=0.1)


@pytest.mark.parametrize("kind", [HEAD, MEAN])
def test_the_loaded_model_gives_the_scores_of_the_measurement(run, tiny_data, kind):
    """Whatever the read-out reads, prompt by prompt, from the forward that begins the answer."""
    _fit(run, tiny_data)
    fitted = read_guard(run / FOLDER / WEIGHTS)
    random = np.random.default_rng(0)
    read_out = ReadOut(random.normal(size=32), 0.25, 0.0)
    write_guard(run / FOLDER / WEIGHTS, Guard(read_out, kind, fitted.weights))
    config = recorded_config(run, False)
    dataset = load_test_set(config, load_encoder(config), config.data.test["novel"])
    [(_, model)] = in_memory([run_subject(run, config)], CPU)
    expected = read_out.scores(represent(model, dataset, CPU, budget=500).vectors[kind])
    loaded = inference.load(run, device="cpu")
    found = []
    for row in range(len(dataset)):
        triplet = dataset.triplet(row)
        for text in (triplet.benign_input, triplet.only.injection_input):
            found.append(loaded.suspicion(triplet.system_instruction, text, triplet.context).score)
    # float32 states in trees of other shapes
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert loaded.suspicion("S", "U").suspected == (loaded.suspicion("S", "U").score >= 0)


def test_answer_and_suspicion_take_one_forward_over_the_prompt(run, tiny_data, monkeypatch):
    _fit(run, tiny_data)
    model = inference.load(run, device="cpu")
    asked = ("Extract the city.", "I live in Oslo.")
    lengths = []
    forward = type(model)._forward
    monkeypatch.setattr(
        type(model),
        "_forward",
        lambda self, ids, *a: lengths.append(len(ids)) or forward(self, ids, *a),
    )
    answer, suspicion = model.answer_with_suspicion(*asked, max_new_tokens=4)
    assert lengths == [len(model.encoder.prompt_ids(*asked)), *[1] * (len(lengths) - 1)]
    assert answer == model.answer(*asked, max_new_tokens=4)
    assert suspicion == model.suspicion(*asked)


def _numbers(path):
    """All that a detector's file says; safetensors writes its header in any order."""
    with safe_open(str(path), "pt") as file:
        about = file.metadata()
    return about, {name: tensor.tolist() for name, tensor in load_file(path).items()}


def test_an_export_holds_the_detector_of_its_weights_and_says_what_it_is_worth(
    run, tiny_data, tmp_path
):
    result = _fit(run, tiny_data)
    options = ExportOptions(rows=1, data=str(tiny_data / "test_novel.jsonl"))
    export_run(run, tmp_path / "with", options)
    folder = tmp_path / "with" / FOLDER
    assert _numbers(folder / WEIGHTS) == _numbers(run / FOLDER / WEIGHTS)
    assert json.loads((folder / RECORD).read_text())["sets"].keys() == result["sets"].keys()
    card = (tmp_path / "with" / "README.md").read_text()
    assert "weight · x + bias >= threshold" in card
    for name, better in result["better"].items():
        assert f"- `{name}`: {'tells more' if better else 'not shown to tell more'}" in card
    (run / FOLDER / RECORD).write_text("{")
    with pytest.raises(UserError, match=r"guard\.json is damaged"):
        export_run(run, tmp_path / "damaged", options)
    good = read_guard(run / FOLDER / WEIGHTS)
    write_guard(run / FOLDER / WEIGHTS, Guard(good.read_out, good.kind, "0" * 64))
    export_run(run, tmp_path / "without", options)  # a detector of another checkpoint stays out
    assert not (tmp_path / "without" / FOLDER).exists()


def test_no_detector_one_of_other_weights_and_a_damaged_one_are_refused(run, tiny_data):
    _fit(run, tiny_data)
    file = run / FOLDER / WEIGHTS
    kept, good = file.read_bytes(), read_guard(file)

    def refused() -> str:
        with pytest.raises(UserError) as caught:
            inference.load(run, device="cpu").suspicion("S", "U")
        return str(caught.value)

    file.unlink()
    assert "no detector was fitted" in refused() and f"causal guard {run}" in refused()
    write_guard(file, Guard(good.read_out, good.kind, "0" * 64))
    assert "fitted on other weights" in refused()
    write_guard(file, Guard(ReadOut(np.ones(7), 0.0, 0.0), good.kind, good.weights))
    assert "7 numbers" in refused()
    for damaged in (b"", kept[:-9], b"\xff" * 200):
        file.write_bytes(damaged)
        assert "is no detector" in refused()
    save_file({"weight": torch.full((32,), torch.nan)}, file)
    assert "is no detector" in refused()
    file.write_bytes(kept)
    assert (
        inference.load(run, device="cpu").suspicion("S", "U").threshold == good.read_out.threshold
    )
