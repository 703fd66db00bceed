"""What comes from outside: the model's directory, tokenizer and base weights."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from causal_core.config import Config, ModelSection
from causal_core.device import bnb_device_map, dtype_of
from causal_core.errors import ModelError, UserError
from causal_core.pretrained.demo_model import demo_model_directory
from causal_core.pretrained.hub import ask_hub, hub_refused
from causal_core.pretrained.model_files import check_model_directory, check_weight_files
from causal_core.visible_text import quoted, shown

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d{1,6})\.")


def loading_device(config: Config, device: torch.device) -> torch.device:
    """Where the base is loaded: ZeRO-3 takes it from host memory, shard by shard, because it may
    be larger than a device."""
    sharded = config.engine == "deepspeed" and config.deepspeed.zero_stage == 3
    return torch.device("cpu") if sharded else device


def resolve_model(config: ModelSection, cache_dir: str | None = None) -> str:
    """A directory or hub id that transformers can load (`demo` becomes the cached directory)."""
    if config.name_or_path == "demo":
        return str(demo_model_directory(cache_dir))
    path = Path(config.name_or_path).expanduser()
    if path.is_dir():
        check_model_directory(path)
        return str(path)
    if config.name_or_path.startswith((".", "/", "~")):
        raise ModelError(
            f"model.name_or_path={shown(config.name_or_path)}: no such directory; give one in "
            "Hugging Face layout, a hub id, or `demo`"
        )
    return config.name_or_path


def check_weights(config: ModelSection, cache_dir: str | None = None) -> None:
    """Refuses a local model whose weights are missing or damaged; those of a hub are its own."""
    directory = Path(resolve_model(config, cache_dir))
    if directory.is_dir():
        check_weight_files(directory)


def load_architecture(config: ModelSection, cache_dir: str | None = None) -> Any:
    """transformers' config of the base model (`ModelError` when it cannot be loaded)."""
    from transformers import AutoConfig

    source = resolve_model(config, cache_dir)
    ask_hub(source)
    with _told("configuration", source):
        return AutoConfig.from_pretrained(
            source, revision=config.revision, trust_remote_code=config.trust_remote_code
        )


@dataclass(frozen=True)
class ModelLimits:
    """What a model can take, by its own config; None where that does not say."""

    vocabulary: int | None  # rows of its embedding
    positions: int | None
    # Up to this length the rotation of a position is the same in sequences of any length (longrope
    # has one set of frequencies for short sequences and one for long ones).
    same_rotation: int | None = None


def model_limits(config: ModelSection, cache_dir: str | None = None) -> ModelLimits:
    """The limits of the base model (`ModelError` when its config cannot be loaded)."""
    described = load_architecture(config, cache_dir).get_text_config()
    return ModelLimits(
        getattr(described, "vocab_size", None),
        getattr(described, "max_position_embeddings", None),
        same_rotation(getattr(described, "rope_parameters", None) or {}),
    )


def same_rotation(rope: dict[str, Any]) -> int | None:
    """Dynamic scaling differs beyond `max_position_embeddings`, which no row may exceed anyway."""
    kinds = [rope, *(kind for kind in rope.values() if isinstance(kind, dict))]  # one a layer type
    lengths = [
        kind["original_max_position_embeddings"]
        for kind in kinds
        if kind.get("rope_type") == "longrope"
    ]
    return min(lengths, default=None)


def load_tokenizer(config: ModelSection, cache_dir: str | None = None) -> Any:
    """The base model's tokenizer (`ModelError` when it cannot be loaded)."""
    from transformers import AutoTokenizer

    source = resolve_model(config, cache_dir)
    ask_hub(source)
    with _told("tokenizer", source):
        return AutoTokenizer.from_pretrained(
            source, revision=config.revision, trust_remote_code=config.trust_remote_code
        )


def load_base(config: ModelSection, device: torch.device, cache_dir: str | None = None) -> Any:
    """The frozen base model on a device, quantised if asked for (`ModelError` otherwise)."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    source = resolve_model(config, cache_dir)
    check_weights(config, cache_dir)
    dtype = dtype_of(config.dtype)
    options: dict[str, Any] = {
        "dtype": dtype,
        "revision": config.revision,
        "trust_remote_code": config.trust_remote_code,
        "attn_implementation": "eager",  # what every architecture has; `build_model` sets its own
        "low_cpu_mem_usage": True,
        # What does not fit is told by `_refuse_unfit_weights`.
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,
    }
    if config.quantization == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        options["device_map"] = bnb_device_map(device)
    ask_hub(source)
    with _told("model", source):
        model, found = AutoModelForCausalLM.from_pretrained(source, **options)
    _refuse_unfit_weights(source, found, model.config.get_text_config())
    _refuse_no_numbers(source, model)
    model.requires_grad_(False)
    if config.quantization == "nf4":
        _keep_backward(model)
        return model
    return model.to(device)


def _refuse_unfit_weights(source: str, found: Mapping[str, Any], described: Any) -> None:
    """Refuses weights that are not those of the config: transformers fills in random ones, and
    leaves out layers.

    Args:
        found: Of `from_pretrained`: what was missing, what was left out, and names with two shapes
            that differ.
        described: The config of the part that reads text.
    """
    if mismatched := sorted(found["mismatched_keys"]):
        name, stored, wanted = mismatched[0]
        raise ModelError(
            f"{shown(source)}: the weights are not those of its config.json: {quoted(name)} has "
            f"the shape {list(stored)}, the config asks for {list(wanted)} ({len(mismatched)} such "
            "tensors): download the model again, or undo what was changed"
        )
    if missing := sorted(found["missing_keys"]):
        raise ModelError(
            f"{shown(source)}: {len(missing)} tensors that its config.json asks for are not among "
            f"its weights, e.g. {quoted(missing[0])}, and would be random numbers: download the "
            "model again, or undo what was changed"
        )
    # Layers that predict further tokens are stored behind the others, and are not asked for.
    layers = int(getattr(described, "num_hidden_layers", None) or 0)
    extra = int(getattr(described, "num_nextn_predict_layers", None) or 0)
    numbers = [int(at[1]) for name in found["unexpected_keys"] if (at := _LAYER.search(name))]
    if layers and numbers and max(numbers) >= layers + extra:
        raise ModelError(
            f"{shown(source)}: its config.json asks for {layers} layers, and its weights have one "
            f"of number {max(numbers)} (from 0), which would be left out: download the model "
            "again, or undo what was changed"
        )


def _refuse_no_numbers(source: str, model: nn.Module) -> None:
    """Refuses weights of which one is NaN or infinite: no loss of such a model is a number.

    The least and the largest value tell in one pass without a copy. Quantised weights are not
    looked at.
    """
    for name, weight in model.named_parameters():
        if not weight.is_floating_point() or weight.element_size() < 2 or not weight.numel():
            continue
        if not torch.stack(torch.aminmax(weight.detach())).isfinite().all():
            raise ModelError(
                f"{shown(source)}: the weights in {quoted(name)} are not all numbers (NaN or "
                "infinite), so that no loss would be one: download the model again, or ask whoever "
                "made it for one whose training did not diverge"
            )


def _keep_backward(model: nn.Module) -> None:
    """Keeps bitsandbytes from repacking 4-bit weights at the first forward in evaluation mode.

    It does so on CPUs with AVX512-BF16, into a format without a backward: after a validation, the
    gradient would silently miss all that flows through the base.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def base_without_weights(architecture: Any, config: ModelSection) -> Any:
    """A base model of transformers' config `architecture` on the meta device, frozen.

    Raises:
        ModelError: transformers has no causal language model of this architecture.
    """
    from transformers import AutoModelForCausalLM

    with _told("model", config.name_or_path), torch.device("meta"):
        base = AutoModelForCausalLM.from_config(
            architecture,
            dtype=dtype_of(config.dtype),
            attn_implementation="eager",
            trust_remote_code=config.trust_remote_code,
        )
    return base.requires_grad_(False)


@contextmanager
def _told(what: str, source: str) -> Iterator[None]:
    """Whatever a library says of files that it cannot make a model of, in one line (`ModelError`).

    Files of others hold anything, and each part of a library has its own way to stumble over them.
    """
    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ModelError(cannot_load(what, source, error)) from error


# How transformers begins to say that it does not know an architecture, or not as a language model.
UNKNOWN_ARCHITECTURE = ("Unrecognized configuration class", "Unrecognized model", "The checkpoint")
_CUSTOM_CODE = "custom code"
_OWN_CODE = (
    "A model that needs its own Python code wants model.trust_remote_code=true on the command line "
    "(of evaluate: --trust-remote-code), after you have read that code."
)


def cannot_load(what: str, source: str, error: Exception) -> str:
    """What happened, and what to do about it."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    advice = (
        "Check model.name_or_path, the network or the hub token; a local directory works offline."
    )
    if first.startswith(UNKNOWN_ARCHITECTURE):
        advice = (
            "The installed transformers has no causal language model of this architecture: use one "
            "of those in docs/models.md."
        )
    elif _CUSTOM_CODE in first:
        advice = "It is not run unless you say so."
    elif Path(source).is_dir():
        advice = (
            "Some of its files are missing or damaged, or ask for what the installed transformers "
            "does not have: download them again, or use one of the architectures in docs/models.md."
        )
    if (refused := hub_refused(source)) is not None:
        return f"the {what} of {shown(source)} cannot be loaded: {refused}"
    if not isinstance(error, OSError | ValueError):  # a bare `'key'` or half a sentence a line
        first = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return (
        f"the {what} of {source} cannot be loaded: {first[:300].rstrip('.')}. {advice} {_OWN_CODE}"
    )


_SAMPLE_BYTES = 2**20


def base_fingerprint(source: str, model: Any) -> str:
    """Identifies a base model.

    From the hub its id and commit. A local one by sha256 over its config.json and, for each weight
    file, name, size and three samples of a megabyte: reading 140 GB at each start would take longer
    than many runs, and another model or fine-tune differs in every sample.
    """
    folder = Path(source)
    if not folder.is_dir():
        return f"{source}@{getattr(model.config, '_commit_hash', None)}"
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        size = path.stat().st_size
        digest.update(f"{path.name}/{size}".encode())
        with path.open("rb") as weights:
            for start in (0, size // 2, max(0, size - _SAMPLE_BYTES)):
                weights.seek(start)
                digest.update(weights.read(_SAMPLE_BYTES))
    return digest.hexdigest()
