"""A PEFT LoRA adapter, anyone's: read from safetensors, checked, put into a base.

Of `adapter_config.json` only numbers and names are taken. Which modules are adapted, and with which
rank, is read off the tensors themselves; what would make PEFT compute anything but plain LoRA on
frozen linear modules is refused by name.

Shape legend: I inputs and O outputs of a module, r rank.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from causal_core.checkpoints.contents import (
    ADAPTER,
    MANIFEST,
    adapter_parameter,
    read_manifest,
    tensor_sha256,
    verify_checkpoint,
)
from causal_core.config import Config
from causal_core.errors import CheckpointError, DamagedCheckpointError, ForeignCheckpointError
from causal_core.files import BEST, checked_file, read_small
from causal_core.model.causal_model import CausalModel, adapt, check_architecture
from causal_core.model.plain_peft import without_bitsandbytes
from causal_core.pretrained.hub import ask_hub, hub_refused
from causal_core.pretrained.loading import resolve_model
from causal_core.visible_text import quoted, shown

ADAPTER_CONFIG = "adapter_config.json"
_AND = "+"  # between the fingerprints of a base and of the adapter that a run started from
_MOST_CONFIG_BYTES = 2**20
_TENSOR = re.compile(r"base_model\.model\.(?P<module>[\w.]+)\.lora_(?P<side>[AB])\.weight", re.A)
_PLAIN_NAME = re.compile(r"[\w.]+", re.ASCII)

# Fields of PEFT that say how an adapter was made or is kept, not what it computes, and those that
# the tensors say better.
_SAY_NOTHING = {
    "auto_mapping", "bias", "ensure_weight_tying", "eva_config", "exclude_modules",
    "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform",
    "loftq_config", "lora_dropout", "megatron_config", "megatron_core", "peft_version",
    "qalora_group_size", "revision", "runtime_config", "target_modules", "task_type",
}  # fmt: skip
# Ways of initialising that leave the base's own weights as they are.
_INITIALISED = (True, False, None, "gaussian", "eva", "orthogonal")


class _Described(BaseModel):
    """adapter_config.json, as far as it says what is computed."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    peft_type: Literal["LORA"]
    base_model_name_or_path: str | None = None
    r: int = Field(ge=1, le=2**14)
    lora_alpha: float = Field(gt=0, le=1e6)
    use_rslora: bool = False
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None


@dataclass(frozen=True)
class Adapter:
    """Low-rank matrices by module of the base, and what each product is multiplied by."""

    directory: Path
    base: str | None  # how it names the model that it was trained on
    tensors: dict[str, Tensor]  # by name in the file: A [r, I] and B [O, r]
    scaling: dict[str, float]  # by module

    def fingerprint(self) -> str:
        """sha256 over what it computes, wherever it lies."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"{name}/{tensor_sha256(tensor)}".encode())
        for module, scaling in sorted(self.scaling.items()):
            digest.update(f"{module}/{scaling!r}".encode())
        return digest.hexdigest()

    def sides(self, module: str) -> tuple[Tensor, Tensor]:
        """A [r, I] and B [O, r] of a module."""
        a, b = (self.tensors[_name(module, side)] for side in "AB")
        return a, b


def adapter_directory(place: str) -> Path:
    """Where an adapter's files are: a directory, the best checkpoint of a run directory, or what a
    hub has under that name, of which only the two files that are needed are downloaded.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(place).expanduser()
    if path.is_dir():
        return path if (path / ADAPTER_CONFIG).exists() or not (path / BEST).is_dir() else (
            path / BEST
        )  # fmt: skip
    if place.startswith((".", "/", "~")) or place.count("/") != 1:
        raise CheckpointError(
            f"{shown(place)}: no such directory; give the directory of a PEFT adapter or of a run, "
            "or a hub id (owner/name)"
        )
    from huggingface_hub import snapshot_download

    ask_hub(place)
    try:
        return Path(snapshot_download(place, allow_patterns=[ADAPTER_CONFIG, ADAPTER]))
    except (OSError, ValueError, RuntimeError) as error:  # whatever a network and its client raise
        if (refused := hub_refused(place)) is not None:
            raise CheckpointError(
                f"the adapter {shown(place)} cannot be had from the hub: {refused}"
            ) from error
        reason = quoted((str(error).strip().splitlines() or [type(error).__name__])[0], 200)
        raise CheckpointError(
            f"the adapter {shown(place)} cannot be had from the hub: {reason}; check its name, the "
            "network or the hub token, or give a directory"
        ) from error


def read_adapter(directory: Path) -> Adapter:
    """The adapter in a directory; nothing in it is executed or unpickled.

    Raises:
        CheckpointError: no adapter, one of a kind that is not computed here, or a damaged one.
    """
    if (directory / MANIFEST).exists():
        verify_checkpoint(directory)
    described = _described(directory)
    tensors = _tensors(directory)
    modules = sorted({_module(name) for name in tensors})
    scaling = {}
    for module in modules:
        missing = [side for side in "AB" if _name(module, side) not in tensors]
        if missing:
            raise _damaged(directory, f"{shown(module)} has no lora_{missing[0]}")
        a, b = (tensors[_name(module, side)] for side in "AB")
        rank = _of_module(described.rank_pattern, module, described.r)
        if a.dim() != 2 or b.dim() != 2 or not a.shape[0] == b.shape[1] == rank:
            raise _damaged(
                directory,
                f"{shown(module)} has matrices of shapes {tuple(a.shape)} and {tuple(b.shape)}, "
                f"and {ADAPTER_CONFIG} says rank {rank}",
            )
        alpha = _of_module(described.alpha_pattern, module, described.lora_alpha)
        scaling[module] = alpha / (math.sqrt(rank) if described.use_rslora else rank)
    return Adapter(directory, described.base_model_name_or_path, tensors, scaling)


def with_fresh_adapter(base: Any, adapter: Adapter, seed: int = 0) -> CausalModel:
    """A model with room for an adapter's matrices that still computes what the base does.

    Raises:
        ForeignCheckpointError: the base has no such modules, or of other shapes.
    """
    check_architecture(base)
    _refuse_other_shapes(base, adapter)
    with without_bitsandbytes(base):
        from peft import LoraConfig

    ranks = {module: int(adapter.sides(module)[0].shape[0]) for module in adapter.scaling}
    return adapt(
        base,
        LoraConfig(
            r=next(iter(ranks.values())),
            target_modules=list(ranks),
            # Keys are regular expressions there.
            rank_pattern={re.escape(module): rank for module, rank in ranks.items()},
            alpha_pattern={
                re.escape(module): scaling * ranks[module]  # type: ignore[misc]
                for module, scaling in adapter.scaling.items()
            },
            task_type="CAUSAL_LM",
        ),
        seed,
    )


@torch.no_grad()
def load_adapter(adapter: Adapter, model: CausalModel) -> None:
    """Copies an adapter's matrices into a model that has room for them and for nothing else; its
    head stays as it is.

    Raises:
        ForeignCheckpointError: names the first matrix that the model lacks, has besides, or has of
            another shape.
    """
    own = {n: p for n, p in model.trainable_parameters().items() if "lora_" in n}
    theirs = {adapter_parameter(name): tensor for name, tensor in adapter.tensors.items()}
    problems = [f"{name} is missing" for name in own if name not in theirs]
    problems += [f"{name} is unexpected" for name in theirs if name not in own]
    problems += [
        f"{name} has shape {tuple(theirs[name].shape)}, the model wants {tuple(p.shape)}"
        for name, p in own.items()
        if name in theirs and theirs[name].shape != p.shape
    ]
    if problems:
        raise ForeignCheckpointError(
            f"the adapter in {shown(str(adapter.directory))} does not fit this model: "
            f"{shown(problems[0])} ({len(problems)} such)"
        )
    for name, parameter in own.items():
        parameter.copy_(theirs[name])


def start_from(model: CausalModel, config: Config, base_fingerprint: str) -> str:
    """Lets a model that is about to be trained begin at the adapter of `lora.init_from`.

    Returns:
        What the run starts from: the base's fingerprint, with the adapter's where there is one.
        Both are compared by content when the run is resumed.

    Raises:
        CheckpointError: there is no such adapter, or it is of another base, shape or scaling.
    """
    if config.lora.init_from is None:
        return base_fingerprint
    directory = adapter_directory(config.lora.init_from)
    adapter = read_adapter(directory)
    what = f"lora.init_from={shown(config.lora.init_from)}"
    model_name = config.model.name_or_path
    resolved = resolve_model(config.model, config.data.cache_dir)
    if (directory / MANIFEST).exists():
        same = read_manifest(directory).base_fingerprint.partition(_AND)[0] == base_fingerprint
    else:
        same = names_same_base(adapter.base, model_name, resolved)
    if not same:
        raise ForeignCheckpointError(
            f"{what} was trained on another base ({quoted(adapter.base)}) than {shown(model_name)}:"
            " set model.name_or_path to that one"
        )
    own = config.lora.alpha / config.lora.rank
    for module, scaling in adapter.scaling.items():
        if not math.isclose(scaling, own, rel_tol=1e-6):  # decimal numbers of another's file
            raise ForeignCheckpointError(
                f"{what} scales {shown(module)} by {scaling:g}, and lora.alpha / lora.rank is "
                f"{own:g}, so its weights would mean something else: set lora.alpha="
                f"{scaling * config.lora.rank:g}"
            )
    load_adapter(adapter, model)
    return f"{base_fingerprint}{_AND}{adapter.fingerprint()}"


def names_same_base(named: str | None, place: str, directory: str) -> bool:
    """Whether an adapter's word for its base may mean a model: a copy of `owner/name` in a
    directory `name` is taken for it. An adapter that names none fits any.

    Args:
        place: The model as it was given.
        directory: What that is resolved to.
    """
    if named is None:
        return True
    given = {place, directory, str(Path(directory).resolve())}
    return named in given or Path(named).name.lower() in {Path(name).name.lower() for name in given}


def _described(directory: Path) -> _Described:
    path = directory / ADAPTER_CONFIG
    try:
        described = _Described.model_validate_json(read_small(path, _MOST_CONFIG_BYTES))
    except FileNotFoundError:
        raise CheckpointError(
            f"{shown(str(directory))} has no {ADAPTER_CONFIG}: it holds no PEFT adapter (a whole "
            "model is given as one: --model, model:DIR)"
        ) from None
    except OSError as error:
        raise _damaged(directory, f"{ADAPTER_CONFIG}: {error.strerror}") from error
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)[0]
        at = ".".join(str(part) for part in found["loc"])
        if at == "peft_type":
            raise CheckpointError(
                f"{shown(str(path))}: only adapters of the kind LORA are computed here; merge this "
                "one into its base with PEFT and give the result as a model"
            ) from None
        reason = quoted(f"{at}: {found['msg']}", 200)[1:-1]
        raise _damaged(directory, f"{ADAPTER_CONFIG}: {reason}") from None
    _refuse_other_kinds(path, described.model_extra or {})
    for pattern in (described.rank_pattern or {}, described.alpha_pattern or {}):
        if odd := next((key for key in pattern if not _PLAIN_NAME.fullmatch(key)), None):
            raise CheckpointError(
                f"{shown(str(path))}: {quoted(odd)} is no plain name of a module; a regular "
                "expression of someone else's is not run"
            )
    return described


def _refuse_other_kinds(path: Path, fields: Mapping[str, Any]) -> None:
    """Whatever would make PEFT compute something else than x W^T + s x A^T B^T."""
    odd = {k: v for k, v in fields.items() if k not in _SAY_NOTHING and v}
    if fields.get("bias", "none") != "none":
        odd["bias"] = fields["bias"]
    initialised = fields.get("init_lora_weights", True)
    if not any(initialised is known or initialised == known for known in _INITIALISED):
        odd["init_lora_weights"] = initialised
    for name, value in odd.items():
        raise CheckpointError(
            f"{shown(str(path))}: {quoted(name)} is {quoted(str(value), 60)}, and only plain LoRA "
            "on frozen modules is computed here; merge the adapter into its base with PEFT and "
            "give the result as a model"
        )


def _tensors(directory: Path) -> dict[str, Tensor]:
    path = directory / ADAPTER
    try:
        checked_file(path)
        tensors = load_file(path)
    except FileNotFoundError:
        pickled = (directory / "adapter_model.bin").exists()
        raise CheckpointError(
            f"{shown(str(directory))} has no {ADAPTER}"
            + (
                "; its adapter_model.bin is a pickle, which can run code and is never loaded: "
                "save it as safetensors (PEFT's save_pretrained does)"
                if pickled
                else ""
            )
        ) from None
    except OSError as error:
        raise _damaged(directory, f"{ADAPTER}: {error.strerror or error}") from error
    except (SafetensorError, ValueError, TypeError, RuntimeError) as error:
        raise _damaged(directory, f"{ADAPTER}: {quoted(str(error), 200)}") from error
    if not tensors:
        raise _damaged(directory, f"{ADAPTER} holds no tensors")
    for name, tensor in tensors.items():
        if _TENSOR.fullmatch(name) is None:
            raise CheckpointError(
                f"{shown(str(path))}: tensor {quoted(name)} is no matrix of a plain LoRA on a "
                "linear module; merge the adapter into its base with PEFT and give the result as a "
                "model"
            )
        if not tensor.numel() or not tensor.is_floating_point() or not tensor.isfinite().all():
            raise _damaged(
                directory, f"tensor {quoted(name)} is empty or holds values that are not finite"
            )
    return {name: tensor.float() for name, tensor in tensors.items()}


def _refuse_other_shapes(base: Any, adapter: Adapter) -> None:
    where = f"the adapter in {shown(str(adapter.directory))}"
    decoder = {id(module) for module in base.get_decoder().modules()}
    modules = dict(base.named_modules())
    for name in adapter.scaling:
        module = modules.get(name)
        if not isinstance(module, nn.Linear) or id(module) not in decoder:
            raise ForeignCheckpointError(
                f"{where} adapts {shown(name)}, which is no linear module of the decoder of "
                f"{type(base).__name__}: give the base model that it was trained on"
            )
        a, b = adapter.sides(name)
        found, wanted = (b.shape[0], a.shape[1]), (module.out_features, module.in_features)
        if found != wanted:
            raise ForeignCheckpointError(
                f"{where} adapts {shown(name)} with {found[1]} inputs and {found[0]} outputs, and "
                f"this base has {wanted[1]} and {wanted[0]}: give the base model that it was "
                "trained on"
            )


def _of_module(pattern: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """What is said of a module by its name or the end of it, the first that fits, as in PEFT."""
    fits = (v for k, v in (pattern or {}).items() if f".{module}".endswith(f".{k}"))
    return next(fits, default)


def _name(module: str, side: str) -> str:
    return f"base_model.model.{module}.lora_{side}.weight"


def _module(name: str) -> str:
    found = _TENSOR.fullmatch(name)
    assert found is not None
    return found["module"]


def _damaged(directory: Path, what: str) -> DamagedCheckpointError:
    return DamagedCheckpointError(f"{shown(str(directory))}: {what}: damaged or altered")
