"""A checkpoint of any shape is whole or damaged, never a traceback, and damage is passed over.

Files are changed together with the manifest's digests, as someone would who wants them believed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from causal_core.checkpoints.checkpoint import save_checkpoint
from causal_core.checkpoints.contents import (
    MANIFEST,
    OPTIMIZER,
    PROJECTION,
    STATE,
    file_sha256,
    tensor_sha256,
    verify_checkpoint,
)
from causal_core.checkpoints.store import CheckpointStore
from causal_core.config import LoraSection, TrainSection
from causal_core.engines.plain import PlainEngine
from causal_core.errors import DamagedCheckpointError, NewerFormatError
from causal_core.model.causal_model import build_model
from causal_core.run.exercise import exercise_config, trainer_state
from tests.tiny import tiny_base


class NoTokenizer:
    def save_pretrained(self, directory):
        pass


def write_checkpoint(directory: Path, optimizer: str = "adamw") -> Path:
    """A checkpoint after one step with random gradients."""
    # Large enough that its head is quantised by an 8-bit optimizer.
    model = build_model(tiny_base(hidden=64), LoraSection(rank=2), seed=0)
    engine = PlainEngine(model, TrainSection(optimizer=optimizer), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    for parameter in engine.parameters.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    engine.step(1e-3)
    config = exercise_config(directory)
    state = trainer_state(config, 1)
    save_checkpoint(directory, engine, engine.state(), config, NoTokenizer(), state, {})
    return directory


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("whole") / "step-00000001")


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "step-00000002"))


def believed(directory: Path) -> None:
    """Brings the manifest up to date with the files."""
    manifest = json.loads((directory / MANIFEST).read_text())
    for name in manifest["files"]:
        file = directory / name
        manifest["files"][name] = {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
    weights = load_file(directory / PROJECTION)
    manifest["tensors"] |= {name: tensor_sha256(weight) for name, weight in weights.items()}
    (directory / MANIFEST).write_text(json.dumps(manifest))


def test_what_is_saved_is_whole(whole, tmp_path):
    assert verify_checkpoint(whole).step == 1
    assert verify_checkpoint(write_checkpoint(tmp_path / "c", "adamw_8bit")).step == 1


def test_a_state_with_a_best_checkpoint_is_whole(copy):
    changed_json(STATE, lambda tree: {**tree, "best": BEST})(copy)
    believed(copy)
    assert verify_checkpoint(copy).step == 1


def changed_json(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        value = json.loads((directory / name).read_text())
        (directory / name).write_text(json.dumps(change(value)))

    return apply


def changes(key: str, *values: Any) -> Iterator[Callable[[Any], Any]]:
    for value in values:
        yield lambda tree, value=value: {**tree, key: value}
    yield lambda tree: {k: v for k, v in tree.items() if k != key}


def file_renamed(new: str) -> Callable[[Any], Any]:
    def change(tree: Any) -> Any:
        return {**tree, "files": {**tree["files"], new: tree["files"][STATE]}}

    return change


MANIFEST_CHANGES = [
    *changes("tensors", {}, [], None, {"projection.norm.weight": "0" * 64}, {"a": 1}),
    lambda tree: tree | {"tensors": {**tree["tensors"], next(iter(tree["tensors"])): "0" * 64}},
    *changes("files", {}, [], None, "x"),
    *changes("format_version", "1", 1.0, 0, -1, True, None, [1], 10**30),
    *changes("step", -1, 7, "1", None, 10**400),
    *changes("config_fingerprint", 1, None),
    *(lambda tree, size=size: tree | {"files": {n: {**f, "bytes": size}
      for n, f in tree["files"].items()}} for size in ("1", -1, None, 10**30)),
    *(file_renamed(name) for name in ("../x", "/etc/passwd", "a/b", "..", "", "a\0", "..\\x",
                                      "x" * 300, MANIFEST)),
    lambda tree: [], lambda tree: None, lambda tree: 7, lambda tree: {},
]  # fmt: skip


@pytest.mark.parametrize("change", MANIFEST_CHANGES)
def test_a_manifest_of_any_shape_is_damaged(copy, change):
    changed_json(MANIFEST, change)(copy)
    with pytest.raises((DamagedCheckpointError, NewerFormatError)) as caught:
        verify_checkpoint(copy)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500 + len(str(copy))


BEST = {"step": 1, "value": 0.5, "lowest_benign_nll": 1.0, "benign_nll": 1.0, "stale": 0}
STATE_CHANGES = [
    *changes("step", -1, 2, "1", 1.5, True, None, 10**400),
    *changes("samples", -1, None, "x", 2**63),
    *changes("seed", 10**30),
    *changes("skipped", -1, 1.5, []),
    *changes("learning_rate", "x", None, float("nan"), float("inf"), -1.0, 1e30),
    *changes("best", None, [], {"odd": 1}, {"step": "1"}, {"value": 10**400}),
    *changes("optimizer_values", None, [], {"a": 1}, {"a": {"b": [1]}}),
    *changes("metrics", None, 3),
    # Of the right shape, and of no run.
    *(lambda tree, impossible=impossible: {**tree, **impossible} for impossible in (
        {"total_steps": 0}, {"samples": 0}, {"skipped": 2}, {"skipped": 1, "skipped_in_a_row": 2},
        {"skipped_in_a_row": 1}, {"best": BEST | {"step": 2}}, {"best": BEST | {"step": 0}},
        {"best": BEST | {"value": None}}, {"best": BEST | {"benign_nll": 0.5}},
        {"best": BEST | {"stale": 1}}, {"best": {"stale": 2}}, {"best": {"step": 10**400}},
        {"skipped": 1},
    )),
    *changes("data_fingerprint", 5),
    *(lambda tree, extra=extra: {**tree, extra: 1} for extra in ("odd", "__class__")),
    lambda tree: [], lambda tree: None, lambda tree: {},
]  # fmt: skip


@pytest.mark.parametrize("change", STATE_CHANGES)
def test_a_trainer_state_of_any_shape_is_damaged(copy, change):
    changed_json(STATE, change)(copy)
    believed(copy)
    with pytest.raises(DamagedCheckpointError, match=STATE):
        verify_checkpoint(copy)


def changed_tensors(name: str, change: Callable[[dict], Any]) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        tensors = load_file(directory / name)
        change(tensors)
        save_file(tensors, directory / name)

    return apply


def first(tensors: dict, key: str) -> str:
    return next(name for name in tensors if name.endswith(key))


def filled(tensors: dict, key: str, value: float) -> None:
    tensors[first(tensors, key)].view(-1)[0] = value


OPTIMIZER_CHANGES = {
    "empty": lambda t: t.clear(),
    "one gone": lambda t: t.pop(first(t, "exp_avg")),
    "one parameter gone": lambda t: [
        t.pop(n) for n in list(t) if n.startswith(first(t, "//step").rpartition("//")[0] + "//")
    ],
    "of a stranger": lambda t: t.update({"other.weight//exp_avg": torch.zeros(2)}),
    "without a name": lambda t: t.update({"x": torch.zeros(2)}),
    "too short": lambda t: t.update({first(t, "exp_avg"): torch.zeros(1)}),
    "another type": lambda t: t.update({(n := first(t, "exp_avg")): t[n].double()}),
    "not a number": lambda t: filled(t, "exp_avg", float("nan")),
    "infinite": lambda t: filled(t, "exp_avg_sq", float("inf")),
    "negative squares": lambda t: filled(t, "exp_avg_sq", -1.0),
    "no step": lambda t: t.update({first(t, "//step"): torch.tensor(float("nan"))}),
    "a step back": lambda t: t.update({first(t, "//step"): torch.tensor(-1.0)}),
    "half a step": lambda t: t.update({first(t, "//step"): torch.tensor(0.5)}),
    "steps of another kind": lambda t: t.update({first(t, "//step"): torch.tensor(1)}),
    "steps ahead": lambda t: t.update({first(t, "//step"): torch.tensor(2.0)}),
    "steps behind": lambda t: t.update({n: torch.zeros(()) for n in t if n.endswith("//step")}),
    "many steps": lambda t: t.update({first(t, "//step"): torch.ones(3)}),
}


@pytest.mark.parametrize("change", OPTIMIZER_CHANGES.values(), ids=OPTIMIZER_CHANGES)
def test_the_optimizers_file_is_complete_of_the_right_shape_and_finite(copy, change):
    changed_tensors(OPTIMIZER, change)(copy)
    believed(copy)
    with pytest.raises(DamagedCheckpointError, match=OPTIMIZER):
        verify_checkpoint(copy)


@pytest.mark.parametrize("key", ["absmax1", "qmap2", "state1"])
def test_an_8_bit_state_cannot_be_read_beyond_its_end(tmp_path, key):
    directory = write_checkpoint(tmp_path / "c", "adamw_8bit")
    tensors = load_file(directory / OPTIMIZER)
    quantised = first(tensors, "absmax1").rpartition("//")[0]
    tensors[f"{quantised}//{key}"] = tensors[f"{quantised}//{key}"].reshape(-1)[:1].clone()
    save_file(tensors, directory / OPTIMIZER)
    believed(directory)
    with pytest.raises(DamagedCheckpointError, match=key):
        verify_checkpoint(directory)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_damage(copy, value):
    changed_tensors(PROJECTION, lambda t: filled(t, "weight", value))(copy)
    believed(copy)
    with pytest.raises(DamagedCheckpointError, match="not finite"):
        verify_checkpoint(copy)


def replaced_by_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("name", [MANIFEST, STATE, PROJECTION])
@pytest.mark.parametrize(
    "damage",
    [
        replaced_by_a_pipe,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"[" * 100_000),
        lambda path: path.write_bytes(b"\xff\xfe"),
        lambda path: path.write_bytes((2**62).to_bytes(8, "little") + b"{}"),
        lambda path: path.write_bytes(b'{"format_version": ' + b"9" * 5000 + b"}"),
    ],
)
def test_files_that_are_none_are_damage_and_the_one_before_is_taken(copy, whole, name, damage):
    damage(copy / name)
    if name != MANIFEST and (copy / name).is_file():
        manifest = json.loads((copy / MANIFEST).read_text())
        file = copy / name
        manifest["files"][name] = {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
        (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DamagedCheckpointError, match=name):
        verify_checkpoint(copy)
    shutil.copytree(whole, copy.parent / whole.name)
    with CheckpointStore(str(copy.parent)).newest_whole() as newest:
        assert newest is not None and newest.name == whole.name


@pytest.mark.parametrize(
    ("name", "key"), [(MANIFEST, "format_version"), (MANIFEST, "files"), (STATE, "step")]
)
def test_a_key_that_is_given_twice_is_damage(copy, name, key):
    text = (copy / name).read_text()
    (copy / name).write_text(text.replace(f'"{key}":', f'"{key}": 7, "{key}":', 1))
    if name == STATE:
        believed(copy)
    with pytest.raises(DamagedCheckpointError, match=rf"{name}.*{key}.* is given twice"):
        verify_checkpoint(copy)


def test_a_file_with_a_hole_of_gigabytes_is_damage_before_it_is_read(copy):
    with (copy / OPTIMIZER).open("r+b") as file:
        file.truncate(2**40)
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["files"][OPTIMIZER]["bytes"] = 2**40
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DamagedCheckpointError, match=rf"{OPTIMIZER}: cannot be read"):
        verify_checkpoint(copy)
