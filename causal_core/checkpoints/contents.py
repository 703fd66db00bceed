"""Whether a directory is a whole checkpoint: its manifest, its files, and what is in them.

Nothing that a file says is believed before it was checked, and whatever shape it has, the answer
is a `DamagedCheckpointError` at most: auto-resume then takes the checkpoint before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from causal_core.checkpoints.state import MAX_JSON_BYTES, SavedState
from causal_core.engines.optimizer import optimizer_problems, optimizer_steps
from causal_core.errors import DamagedCheckpointError, NewerFormatError
from causal_core.files import checked_file, read_small
from causal_core.visible_text import quoted, shown

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
ADAPTER = "adapter_model.safetensors"
PROJECTION = "causal_projection.safetensors"
OPTIMIZER = "optimizer.safetensors"
STATE = "trainer_state.json"
CONFIG = "config.yaml"
PEFT_PREFIX = "peft_model."
_REQUIRED = {ADAPTER, "adapter_config.json", PROJECTION, OPTIMIZER, STATE, CONFIG}

_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Versioned(BaseModel):
    model_config = ConfigDict(strict=True)

    format_version: int = Field(ge=1)


class ListedFile(BaseModel):
    """A file of a checkpoint, as the manifest has it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    bytes: int = Field(ge=0)
    sha256: _Digest


class Manifest(_Versioned):
    """What manifest.json holds."""

    model_config = ConfigDict(extra="forbid", strict=True)

    step: int = Field(ge=0)
    config_fingerprint: str
    data_fingerprint: str
    base_fingerprint: str
    libraries: dict[str, str]
    files: dict[str, ListedFile]
    tensors: dict[str, _Digest]

    def weights(self) -> str:
        """sha256 that tells what was trained: over the digests of adapter and head."""
        digests = "/".join(self.files[name].sha256 for name in (ADAPTER, PROJECTION))
        return hashlib.sha256(digests.encode()).hexdigest()


def verify_checkpoint(directory: Path) -> Manifest:
    """The manifest of a whole checkpoint.

    Raises:
        DamagedCheckpointError: names the file that is missing, truncated, altered or not what its
            name says, or what does not belong together.
        NewerFormatError: written by a newer version.
    """
    where = shown(str(directory))
    if not directory.is_dir():
        raise DamagedCheckpointError(f"{where}: no such checkpoint directory")
    manifest = read_manifest(directory)
    for name, expected in manifest.files.items():
        _verify_file(directory, name, expected)
    saved = read_state(directory)
    if saved.step != manifest.step:
        raise DamagedCheckpointError(
            f"{where}: {STATE} is of step {saved.step}, {MANIFEST} of step {manifest.step}"
        )
    _verify_tensors(directory, manifest, saved)
    return manifest


def read_state(directory: Path) -> SavedState:
    """The trainer state of a checkpoint (`DamagedCheckpointError` if it is none)."""
    with _damage_of(directory / STATE):
        content = read_small(directory / STATE, MAX_JSON_BYTES)
        saved = SavedState.model_validate_json(content)
        _refuse_repeated_keys(content)
        return saved


def stored_weights(directory: Path) -> dict[str, Tensor]:
    """Adapter and head of a checkpoint by parameter name (`DamagedCheckpointError`)."""
    stored: dict[str, Tensor] = {}
    with _damage_of(directory / ADAPTER):
        adapter = load_file(directory / ADAPTER)
        stored.update({adapter_parameter(key): value for key, value in adapter.items()})
    with _damage_of(directory / PROJECTION):
        stored.update(load_file(directory / PROJECTION))
    return stored


def stored_optimizer(directory: Path) -> dict[str, Tensor]:
    """The optimizer's tensors in a checkpoint (`DamagedCheckpointError`)."""
    with _damage_of(directory / OPTIMIZER):
        return load_file(directory / OPTIMIZER)


def stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in a safetensors file, of which only the header is read."""
    with safe_open(path, framework="pt") as stored:
        return {key: tuple(stored.get_slice(key).get_shape()) for key in stored.keys()}  # noqa: SIM118


def adapter_parameter(key: str) -> str:
    """PEFT drops the adapter's name in files: `..lora_A.weight` is `..lora_A.default.weight`."""
    stem, _, leaf = key.rpartition(".")
    return f"{PEFT_PREFIX}{stem}.default.{leaf}"


def tensor_sha256(tensor: Tensor) -> str:
    """sha256 over a tensor's bytes, type and shape."""
    value = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{value.dtype}{tuple(value.shape)}".encode())
    digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def read_manifest(directory: Path) -> Manifest:
    """A checkpoint's manifest, its files not looked at (errors as of `verify_checkpoint`)."""
    path = directory / MANIFEST
    with _damage_of(path):
        try:
            content = read_small(path, MAX_JSON_BYTES)
        except FileNotFoundError:
            raise DamagedCheckpointError(
                f"{shown(str(directory))}: no {MANIFEST}: the save was interrupted, or this is no "
                "checkpoint"
            ) from None
        version = _Versioned.model_validate_json(content).format_version
        if version > FORMAT_VERSION:
            raise NewerFormatError(
                f"{shown(str(directory))}: format version {version}, this program reads up to "
                f"{FORMAT_VERSION}: update causal-ray"
            )
        manifest = Manifest.model_validate_json(content)
        _refuse_repeated_keys(content)
    if unlisted := sorted(_REQUIRED - manifest.files.keys()):
        raise DamagedCheckpointError(f"{shown(str(path))} does not list {', '.join(unlisted)}")
    for name in manifest.files:
        if (
            name in ("", "..")
            or Path(name).name != name
            or "\\" in name
            or "\0" in name
            or name == MANIFEST
        ):
            raise DamagedCheckpointError(
                f"{shown(str(path))}: {quoted(name)} is not a plain file name"
            )
    return manifest


def _refuse_repeated_keys(content: bytes) -> None:
    """A key that is given twice says one thing to this program and another to the next reader."""

    def once(pairs: list[tuple[str, object]]) -> None:
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key[:80]!r} is given twice")
            seen.add(key)

    json.loads(content, object_pairs_hook=once)


def _verify_file(directory: Path, name: str, expected: ListedFile) -> None:
    where = shown(str(directory))
    try:
        size = checked_file(directory / name).st_size
        if size != expected.bytes:
            raise DamagedCheckpointError(
                f"{where}: {shown(name)} has {size} bytes, the manifest says {expected.bytes}: "
                "truncated or altered"
            )
        if name.endswith(".safetensors"):
            with _damage_of(directory / name), safe_open(directory / name, framework="pt"):
                pass  # its header says how long it is: a hole of gigabytes is never read
        if file_sha256(directory / name) != expected.sha256:
            raise DamagedCheckpointError(
                f"{where}: {shown(name)} does not match its sha256: altered"
            )
    except FileNotFoundError:
        raise DamagedCheckpointError(f"{where}: {shown(name)} is missing") from None
    except OSError as error:
        raise DamagedCheckpointError(f"{where}: {shown(name)}: {error.strerror}") from None


def _verify_tensors(directory: Path, manifest: Manifest, saved: SavedState) -> None:
    """The tensors are those of the manifest, and the optimizer's state is one of them.

    A manifest that lists none, or a file that holds NaN, is as damaged as one that is cut off.
    """
    where, weights = shown(str(directory)), stored_weights(directory)
    if odd := sorted(weights.keys() ^ manifest.tensors.keys()):
        raise DamagedCheckpointError(
            f"{where}: {len(odd)} tensors are either in the files or in {MANIFEST}, not in both, "
            f"e.g. {quoted(odd[0])}"
        )
    for name, weight in weights.items():
        if not weight.numel() or not weight.is_floating_point() or not weight.isfinite().all():
            raise DamagedCheckpointError(
                f"{where}: tensor {quoted(name)} is empty or holds values that are not finite"
            )
        if tensor_sha256(weight) != manifest.tensors[name]:
            raise DamagedCheckpointError(
                f"{where}: tensor {quoted(name)} differs from the manifest"
            )
    tensors = stored_optimizer(directory)
    if problems := optimizer_problems(weights, tensors, saved.optimizer_values):
        raise DamagedCheckpointError(f"{where}: {OPTIMIZER}: {problems[0]}")
    if not tensors and saved.applied():
        raise DamagedCheckpointError(
            f"{where}: {OPTIMIZER} is empty after {saved.applied()} steps that moved the weights"
        )
    if tensors and (counted := optimizer_steps(tensors, saved.optimizer_values)) != saved.applied():
        raise DamagedCheckpointError(
            f"{where}: {OPTIMIZER} has moved the weights {counted} times, {STATE} says "
            f"{saved.applied()}"
        )


@contextmanager
def _damage_of(path: Path) -> Iterator[None]:
    """Whatever a library says of a file that it cannot read, in one line."""
    try:
        yield
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)[0]
        at = ".".join(str(part) for part in found["loc"])
        reason = quoted(f"{at}: {found['msg']}" if at else found["msg"], 200)[1:-1]
        raise DamagedCheckpointError(
            f"{shown(str(path))}: not a readable {path.name}: {reason}"
        ) from None
    except OSError as error:
        reason = error.strerror or quoted(str(error), 200)
        raise DamagedCheckpointError(f"{shown(str(path))}: {reason}") from None
    except (SafetensorError, ValueError, TypeError, RuntimeError) as error:
        raise DamagedCheckpointError(
            f"{shown(str(path))}: cannot be read: {quoted(str(error), 200)}"
        ) from error
