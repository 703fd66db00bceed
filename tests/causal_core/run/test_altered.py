"""A checkpoint that verifies and cannot be one of this run is damaged: the one before is taken.

Files are changed together with the manifest's digests, as someone would who wants them believed.
"""

from __future__ import annotations

import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from causal_core.checkpoints.contents import (
    MANIFEST,
    OPTIMIZER,
    PROJECTION,
    STATE,
    verify_checkpoint,
)
from causal_core.errors import DamagedCheckpointError
from causal_core.run import loop
from causal_core.run.context import LocalContext
from tests.causal_core.checkpoints.test_damage import believed, changed_json, changed_tensors
from tests.tiny_run import tiny_config

BEFORE, NEWEST = "step-00000004", "step-00000005"
ROWS = r"step 5 and \d+ rows, but that step ends after \d+"


def run(config, directory):
    return loop.train(config, LocalContext(directory, torch.device("cpu")))


@pytest.fixture(scope="module")
def config(tiny_model_directory, tiny_data, tmp_path_factory):
    return tiny_config(tiny_model_directory, tiny_data, tmp_path_factory.mktemp("altered"))


@pytest.fixture(scope="module")
def straight(config, tmp_path_factory):
    directory = tmp_path_factory.mktemp("straight") / "run"
    run(config, directory)
    return directory


@pytest.fixture
def copy(straight, tmp_path):
    return shutil.copytree(straight, tmp_path / "run")


def state(key, change):
    return changed_json(STATE, lambda tree: {**tree, key: change(tree[key])})


def weight_and_moments(change):
    """Changes a weight of the head, and its moments alike."""
    name = "projection.norm.weight"

    def apply(directory):
        changed_tensors(PROJECTION, lambda t: t.update({name: change(t[name])}))(directory)
        keys = [f"{name}//{key}" for key in ("exp_avg", "exp_avg_sq")]
        changed_tensors(OPTIMIZER, lambda t: t.update({k: change(t[k]) for k in keys}))(directory)

    return apply


def of_8_bits(directory):
    """The state that bitsandbytes keeps of small parameters."""
    renamed = {"exp_avg": "state1", "exp_avg_sq": "state2"}
    tensors, values = {}, {}
    for full_name, tensor in load_file(directory / OPTIMIZER).items():
        name, _, key = full_name.rpartition("//")
        if key == "step":
            values[name] = {"step": int(tensor)}
        else:
            tensors[f"{name}//{renamed[key]}"] = tensor
    save_file(tensors, directory / OPTIMIZER)
    changed_json(STATE, lambda tree: {**tree, "optimizer_values": values})(directory)


def another_tensor(directory):
    def change(tensors):
        for name in [n for n in tensors if n.startswith("projection.norm.weight")]:
            tensors[name.replace("norm", "another")] = tensors[name].clone()

    changed_tensors(PROJECTION, change)(directory)
    changed_tensors(OPTIMIZER, change)(directory)


ALTERED = {
    "fewer rows": (state("samples", lambda n: n - 1), ROWS),
    "more rows": (state("samples", lambda n: n + 1), ROWS),
    "another seed": (state("seed", lambda n: n + 1), "seed"),
    "more steps in all": (state("total_steps", lambda n: n + 1), "6 steps in all"),
    "another rate": (state("learning_rate", lambda rate: 2 * rate + 1e-4), "learning rate"),
    "other data": (state("data_fingerprint", lambda _: "other"), "data_fingerprint"),
    "another base": (state("base_fingerprint", lambda _: "other"), "base_fingerprint"),
    "another config": (state("config_fingerprint", lambda _: "other"), "config_fingerprint"),
    "another shape": (weight_and_moments(lambda t: t[:-1].clone()), "the model wants"),
    "another type": (weight_and_moments(lambda t: t.double()), "float64 instead of"),
    "another tensor": (another_tensor, "projection.another.weight is unexpected"),
    "another optimizer": (of_8_bits, "train.optimizer=adamw"),
}


@pytest.mark.parametrize(("alter", "reason"), ALTERED.values(), ids=ALTERED)
def test_an_altered_checkpoint_is_passed_over(config, straight, copy, caplog, alter, reason):
    newest = copy / "checkpoints" / NEWEST
    expected = verify_checkpoint(newest).files
    alter(newest)
    believed(newest)
    verify_checkpoint(newest)  # by itself it is whole
    caplog.set_level("INFO")
    assert run(config, copy)["steps_now"] == 1
    assert re.search(f"skipping a damaged checkpoint: .*{reason}", caplog.text)
    assert f"resumed from {BEFORE}" in caplog.text
    assert verify_checkpoint(newest).files == expected  # made again, bit for bit


def test_where_none_is_left_the_run_is_refused(config, copy):
    """Starting over beside them would throw away what may be a whole run's work."""
    for directory in (copy / "checkpoints").iterdir():
        state("samples", lambda n: n + 1)(directory)
        believed(directory)
    before = sorted((copy / "checkpoints").rglob("*"))
    with pytest.raises(DamagedCheckpointError, match=ROWS):
        run(config, copy)
    assert sorted((copy / "checkpoints").rglob("*")) == before


def test_what_cannot_be_of_the_run_keeps_no_place(config, straight, copy):
    """A name beyond the run is no newest checkpoint, of which the last few are kept."""
    beyond = copy / "checkpoints" / "step-00000009"
    shutil.copytree(copy / "checkpoints" / NEWEST, beyond)
    (beyond / MANIFEST).unlink()
    shutil.rmtree(copy / "checkpoints" / NEWEST)
    context = LocalContext(copy, torch.device("cpu"), keep_last=1)
    loop.train(config, context)
    assert context.store.names() == [NEWEST, beyond.name]
