"""Nothing that comes with a run or a model runs as code, unless this very command says so."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from causal_core.checkpoints.checkpoint import MANIFEST
from causal_core.config import run_directory
from causal_core.config_file import load_config
from causal_core.errors import ConfigError, DamagedCheckpointError, ModelError
from causal_core.files import BEST, CONFIG
from ray_jobs.cli import commands
from ray_jobs.evaluate_command import run_any_evaluation
from ray_jobs.jobs.entrypoint import job_of
from ray_jobs.run import run_evaluation, run_training
from ray_jobs.subjects import Asked
from tests.tiny_run import tiny_config

CONSOLE = Console(quiet=True)
PLANTED = """
from pathlib import Path
from transformers import {base}
Path({marker!r}).write_text("executed")
class Planted({base}):
    pass
"""


@pytest.fixture(scope="module")
def trained(tiny_model_directory, tiny_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stranger")
    model = shutil.copytree(tiny_model_directory, folder / "model")
    config = tiny_config(
        model,
        tiny_data,
        folder / "run",
        train={"max_steps": 1, "global_batch": 4},
        evaluation={"max_new_tokens": 1, "limit": 1},
    )
    config.data.limit_validation = 2
    run_training(config, CONSOLE, test=False)
    return config


@pytest.fixture
def planted(trained, tmp_path, monkeypatch):
    """The run as a stranger hands it over: code beside the model, trust in its configs, and a
    manifest that fits. Gives the run's directory and the file that the code would write."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    marker = tmp_path / "marker"
    model = shutil.copytree(trained.model.name_or_path, tmp_path / "model")
    run = shutil.copytree(run_directory(trained), tmp_path / "run")
    for name, base, file, loader in (
        ("planted_model", "LlamaForCausalLM", "config.json", "AutoModelForCausalLM"),
        ("planted_tokens", "PreTrainedTokenizerFast", "tokenizer_config.json", "AutoTokenizer"),
    ):
        (model / f"{name}.py").write_text(PLANTED.format(base=base, marker=str(marker)))
        described = json.loads((model / file).read_text())
        reference = f"{name}.Planted"
        described.setdefault("auto_map", {})[loader] = (
            [None, reference] if loader == "AutoTokenizer" else reference
        )
        (model / file).write_text(json.dumps(described))
    for path in (run / CONFIG, run / BEST / CONFIG):
        tree = yaml.safe_load(path.read_text())
        tree["model"].update(name_or_path=str(model), trust_remote_code=True)
        path.write_text(yaml.safe_dump(tree))
    sign(run / BEST)
    return run, marker


def sign(checkpoint: Path) -> None:
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    content = (checkpoint / CONFIG).read_bytes()
    manifest["files"][CONFIG].update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    (checkpoint / MANIFEST).write_text(json.dumps(manifest))


def test_evaluating_a_strangers_run_runs_none_of_its_code(planted):
    run, marker = planted
    evaluation = run_evaluation(run, CONSOLE, {})["evaluation"]  # it needs none of it
    assert evaluation["models"]["trained"] and not marker.exists()
    run_any_evaluation(Asked(run=run, against={"other": str(run)}), CONSOLE)
    assert not marker.exists()


def test_a_model_that_needs_its_code_is_refused(planted):
    run, marker = planted
    model = Path(yaml.safe_load((run / CONFIG).read_text())["model"]["name_or_path"])
    described = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**described, "model_type": "planted"}))
    with pytest.raises(ModelError, match="--trust-remote-code"):
        run_evaluation(run, CONSOLE, {})
    assert not marker.exists()


def test_what_the_command_line_trusts_does_run(planted):
    run, marker = planted
    # So the plant works, and its silence above means something.
    run_any_evaluation(Asked(run=run, trust_remote_code=True), CONSOLE)
    assert marker.read_text() == "executed"


def test_a_checkpoint_is_verified_before_anything_is_loaded_for_it(planted):
    run, marker = planted
    (run / BEST / CONFIG).write_text("altered: true\n")
    with pytest.raises(DamagedCheckpointError, match=r"config\.yaml"):
        run_any_evaluation(Asked(run=run, trust_remote_code=True), CONSOLE)
    assert not marker.exists()  # neither the model nor the tokenizer was loaded


def test_no_file_can_ask_for_trust(tmp_path):
    path = tmp_path / "theirs.yaml"
    path.write_text("model: {trust_remote_code: true}\n")
    with pytest.raises(ConfigError, match="never taken from a file"):
        load_config(path)
    for value in (True, False):
        override = f"model.trust_remote_code={str(value).lower()}"
        assert load_config(path, [override]).model.trust_remote_code is value
    path.write_text("model: {trust_remote_code: false}\n")
    assert load_config(path).model.trust_remote_code is False


def test_trust_travels_with_the_command_of_a_job(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("run: {dir: /shared/run}\ndata: {train: [/shared/train.jsonl]}\n")
    for command in (["train", str(path), "model.trust_remote_code=true"], ["train", str(path)]):
        job = job_of(command, commands())
        assert ("model.trust_remote_code=true" in job.entrypoint) is (len(command) == 3)
