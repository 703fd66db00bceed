"""Checkpoints: a directory that anyone can open, that cannot lie, and that holds no pickle.

    adapter_config.json, adapter_model.safetensors   standard PEFT, loads without this project
    causal_projection.safetensors                    the projection head
    optimizer.safetensors                            moments, keyed by parameter name
    trainer_state.json                               step, data position, schedule, seeds, best
    config.yaml                                      the resolved config of the run
    tokenizer.json, ...                              the tokenizer with its chat template
    manifest.json                                    sha256 and size of every file; written last

A directory without a manifest, or with one that does not match its files, is no checkpoint.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from causal_core.checkpoints.contents import (
    ADAPTER,
    CONFIG,
    FORMAT_VERSION,
    MANIFEST,
    OPTIMIZER,
    PEFT_PREFIX,
    PROJECTION,
    STATE,
    Manifest,
    adapter_parameter,
    file_sha256,
    read_manifest,
    read_state,
    stored_optimizer,
    stored_shapes,
    stored_weights,
    tensor_sha256,
    verify_checkpoint,
)
from causal_core.checkpoints.state import SavedState, TrainerState
from causal_core.config import Config
from causal_core.config_file import parse_config
from causal_core.engines.base import Engine, EngineState
from causal_core.engines.optimizer import MOMENTS, of_another_optimizer
from causal_core.errors import (
    ConfigError,
    DamagedCheckpointError,
    ForeignCheckpointError,
    StorageError,
)
from causal_core.files import write_whole
from causal_core.model.causal_model import CausalModel
from causal_core.visible_text import quoted, shown
from causal_core.yaml_file import read_yaml

_HEAD_PREFIX = "projection."
_LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "ray", "safetensors")


def checkpoint_name(step: int) -> str:
    """Directory name of the checkpoint after `step` optimizer steps; sorts by step."""
    return f"step-{step:08d}"


def save_checkpoint(
    directory: Path,
    engine: Engine,
    trained: EngineState,
    config: Config,
    tokenizer: Any,
    state: TrainerState,
    metrics: Mapping[str, float],
) -> None:
    """Writes a whole checkpoint into an empty or new directory; the manifest comes last.

    Args:
        trained: `engine.state()`, which all workers gather together; one of them writes it.

    Raises:
        StorageError: a tensor would be missing or partial in the files.
    """
    directory.mkdir(parents=True, exist_ok=True)
    weights = trained.weights
    save_adapter(directory, engine.model, weights)
    save_file(_part(weights, _HEAD_PREFIX, keep_prefix=True), directory / PROJECTION)
    save_file(trained.optimizer_tensors, directory / OPTIMIZER)
    _check_whole(directory, engine.shapes)
    _write_json(
        directory / STATE,
        {
            **asdict(state),
            "optimizer_values": trained.optimizer_values,
            "metrics": dict(metrics),
        },
    )
    (directory / CONFIG).write_text(config.to_yaml(), encoding="utf-8")
    tokenizer.save_pretrained(str(directory))
    files = sorted(p for p in directory.iterdir() if p.is_file() and p.name != MANIFEST)
    manifest = {
        "format_version": FORMAT_VERSION,
        "step": state.step,
        "config_fingerprint": state.config_fingerprint,
        "data_fingerprint": state.data_fingerprint,
        "base_fingerprint": state.base_fingerprint,
        "libraries": _library_versions(),
        "files": {p.name: {"bytes": p.stat().st_size, "sha256": file_sha256(p)} for p in files},
        "tensors": {name: tensor_sha256(w) for name, w in weights.items()},
    }
    _write_json(directory / MANIFEST, manifest)


def load_checkpoint(
    directory: Path, engine: Engine, config: Config, data_fingerprint: str, base_fingerprint: str
) -> TrainerState:
    """Puts a checkpoint into an engine's model and optimizer, in place, or raises and changes
    nothing that a run would use. All workers call it together.

    Parameters keep their identity, so the optimizer holds the very tensors that were loaded
    (peft reloads as frozen copies otherwise: bug 2 of the reports).

    Raises:
        CheckpointError: damaged, or of another base model, config or data.
    """
    manifest = verify_checkpoint(directory)
    saved = check_fits(directory, engine, config, data_fingerprint, base_fingerprint)
    engine.load(
        EngineState(
            read_weights(directory, engine.shapes),
            stored_optimizer(directory),
            saved.optimizer_values,
        )
    )
    loaded = engine.weights()
    for name, expected in manifest.tensors.items():
        if tensor_sha256(loaded[name]) != expected:
            raise DamagedCheckpointError(f"{directory}: tensor {name} differs from the manifest")
    return saved.trainer_state()


def check_fits(
    directory: Path, engine: Engine, config: Config, data_fingerprint: str, base_fingerprint: str
) -> SavedState:
    """The trainer state of a checkpoint that verifies and that an engine can load.

    Raises:
        ForeignCheckpointError: it is of another base model, config or data.
        DamagedCheckpointError: it says that it is of the same, and holds what those never give.
    """
    where = shown(str(directory))
    manifest, saved = read_manifest(directory), read_state(directory)
    _refuse_foreign(directory, manifest, config, data_fingerprint, base_fingerprint)
    for key in ("config_fingerprint", "data_fingerprint", "base_fingerprint"):
        if getattr(saved, key) != getattr(manifest, key):
            raise DamagedCheckpointError(f"{where}: {STATE} has another {key} than {MANIFEST}")
    if saved.seed != config.run.seed:
        raise DamagedCheckpointError(
            f"{where}: {STATE} says seed {saved.seed}, its config run.seed={config.run.seed}"
        )
    try:
        weights = read_weights(directory, engine.shapes)
    except ForeignCheckpointError as error:  # of this very base and lora section
        raise DamagedCheckpointError(str(error)) from None
    for name, parameter in engine.model.trainable_parameters().items():
        if weights[name].dtype != parameter.dtype:
            raise DamagedCheckpointError(
                f"{where}: {quoted(name)} is {weights[name].dtype} instead of {parameter.dtype}"
            )
    optimizer = config.train.optimizer
    if odd := of_another_optimizer(stored_optimizer(directory), saved.optimizer_values, optimizer):
        raise DamagedCheckpointError(
            f"{where}: the optimizer state of {quoted(odd)} is of another optimizer than "
            f"train.optimizer={optimizer}"
        )
    return saved


def load_weights(directory: Path, model: CausalModel) -> None:
    """Copies adapter and head of a checkpoint into the own parameters of a model on one worker
    (errors as of `read_weights`)."""
    parameters = model.trainable_parameters()
    stored = read_weights(directory, {name: p.shape for name, p in parameters.items()})
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(stored[name])


def read_weights(directory: Path, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Adapter and head of a checkpoint by parameter name.

    Args:
        shapes: Of the parameters that the model trains.

    Raises:
        ForeignCheckpointError: names every missing, unexpected or wrongly shaped tensor.
    """
    stored = stored_weights(directory)
    problems = [f"{name} is missing" for name in shapes if name not in stored]
    problems += [f"{name} is unexpected" for name in stored if name not in shapes]
    problems += [
        f"{name} has shape {tuple(stored[name].shape)}, the model wants {tuple(shape)}"
        for name, shape in shapes.items()
        if name in stored and stored[name].shape != shape
    ]
    if problems:
        raise ForeignCheckpointError(
            f"{directory} does not fit this model: {'; '.join(problems[:5])}"
            + (f"; ... {len(problems)} problems" if len(problems) > 5 else "")
            + ". Use the lora section and the base model that it was trained with (config.yaml)."
        )
    return stored


def copy_checkpoint(source: Path, target: Path) -> None:
    """Replaces `target` by a copy of a whole checkpoint; `target` is never half-written."""
    staging = target.with_name(f".{target.name}.partial")
    _clear(staging)
    staging.mkdir()
    try:
        for file in sorted(path for path in source.iterdir() if path.is_file()):
            shutil.copy2(file, staging / file.name)
    except OSError:
        _clear(staging)  # half of a checkpoint takes the room that is missing
        raise
    old = target.with_name(f".{target.name}.old")
    _clear(old)
    if os.path.lexists(target):
        target.rename(old)
    staging.rename(target)
    _clear(old)


def _clear(path: Path) -> None:
    """Removes what is there, whatever it is: `rmtree` would wait for the writer of a pipe."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _refuse_foreign(
    directory: Path, manifest: Manifest, config: Config, data: str, base: str
) -> None:
    if manifest.config_fingerprint != config.fingerprint():
        raise ForeignCheckpointError(
            f"{directory} was made with another config:\n"
            + _config_difference(directory, config)
            + "\nRestore these values, or choose another run.dir (or --fresh)"
        )
    for what, found, expected in (
        (
            "training data (or validation data), or other tokens of it (tokenizer, chat template, "
            "version of causal-ray)",
            manifest.data_fingerprint,
            data,
        ),
        ("base model (or adapter to start from)", manifest.base_fingerprint, base),
    ):
        if found != expected:
            raise ForeignCheckpointError(
                f"{directory} was made with other {what} ({shown(found[:12])}..., this run has "
                f"{expected[:12]}...). Restore it, or choose another run.dir (or --fresh)"
            )


def _config_difference(directory: Path, config: Config) -> str:
    try:
        saved = parse_config(read_yaml(directory / CONFIG))
    except ConfigError as error:
        return f"  (its {CONFIG} cannot be read: {error})"
    before, now = saved.result_fields(), config.result_fields()
    return "\n".join(
        f"  {key}: {quoted(before.get(key))} -> {quoted(now.get(key))}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    )


def _check_whole(directory: Path, shapes: Mapping[str, torch.Size]) -> None:
    """What was written, against the model: every parameter, with every element.

    A sharded engine that saves its own part writes adapters that load as empty tensors
    (DeepSpeed#4295); such a directory must never get a manifest.
    """
    written = {adapter_parameter(k): s for k, s in stored_shapes(directory / ADAPTER).items()}
    written.update(stored_shapes(directory / PROJECTION))
    wrong = [
        f"{name}: {written.get(name)} instead of {tuple(shape)}"
        for name, shape in shapes.items()
        if written.get(name) != tuple(shape)
    ]
    wrong += [f"{name}: not a trained parameter" for name in written if name not in shapes]
    for full_name, shape in stored_shapes(directory / OPTIMIZER).items():
        name, _, key = full_name.rpartition("//")
        if name not in shapes or 0 in shape:
            wrong.append(f"{full_name}: {shape}")
        elif key in MOMENTS and shape != tuple(shapes[name]):
            wrong.append(f"{full_name}: {shape} instead of {tuple(shapes[name])}")
    if wrong:
        raise StorageError(
            f"a checkpoint would not be whole: {'; '.join(wrong[:5])}"
            + (f"; ... {len(wrong)} in all" if len(wrong) > 5 else "")
        )


def _part(weights: Mapping[str, Tensor], prefix: str, keep_prefix: bool) -> dict[str, Tensor]:
    return {
        name if keep_prefix else name.removeprefix(prefix): weight
        for name, weight in weights.items()
        if name.startswith(prefix)
    }


def save_adapter(directory: Path, model: CausalModel, weights: Mapping[str, Tensor]) -> None:
    """Writes the adapter of `weights` (by parameter name) in PEFT's layout."""
    # `save_embedding_layers=False`: PEFT would otherwise ask a hub whether the vocabulary grew.
    model.peft_model.save_pretrained(
        str(directory),
        state_dict=_part(weights, PEFT_PREFIX, keep_prefix=False),
        save_embedding_layers=False,
    )
    (directory / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    # PEFT writes sets in hash order; the same adapter shall be the same file.
    path = directory / "adapter_config.json"
    described = json.loads(path.read_text(encoding="utf-8"))
    described["target_modules"] = sorted(described["target_modules"])
    _write_json(path, described)


def _write_json(path: Path, value: Any) -> None:
    write_whole(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def _library_versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _LIBRARIES}
