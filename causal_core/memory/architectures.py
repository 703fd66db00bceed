"""Public architecture numbers of models that are often trained, so that planning needs no network.

Each entry is the model's own `config.json` reduced to what gives tensors their shapes. A local
directory always wins over this table; a model that is not in it is read from the hub.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from causal_core.config import ModelSection
from causal_core.errors import ModelError
from causal_core.files import cache_root
from causal_core.remembered import remembered
from causal_core.visible_text import shown

T = TypeVar("T")

_LLAMA_2 = {"vocab_size": 32000, "tie_word_embeddings": False, "max_position_embeddings": 4096}
_LLAMA_3 = {"vocab_size": 128256, "max_position_embeddings": 131072, "num_key_value_heads": 8}
_SMOLLM_2 = {"vocab_size": 49152, "tie_word_embeddings": True, "max_position_embeddings": 8192}
_QWEN_2_5 = {"vocab_size": 151936, "max_position_embeddings": 32768}


def _sizes(hidden: int, intermediate: int, layers: int, heads: int, **rest: Any) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        **rest,
    }


_LLAMA_3_8B = _sizes(4096, 14336, 32, 32, **_LLAMA_3, tie_word_embeddings=False)
_LLAMA_3_2_1B = _sizes(2048, 8192, 16, 32, **_LLAMA_3, tie_word_embeddings=True, head_dim=64)
_LLAMA_3_2_3B = _sizes(3072, 8192, 28, 24, **_LLAMA_3, tie_word_embeddings=True, head_dim=128)
_MISTRAL_7B = _sizes(
    4096, 14336, 32, 32, num_key_value_heads=8, max_position_embeddings=32768,
    tie_word_embeddings=False,
)  # fmt: skip
_QWEN_2_5_7B = _sizes(
    3584, 18944, 28, 28, max_position_embeddings=32768, vocab_size=152064, num_key_value_heads=4,
    tie_word_embeddings=False,
)  # fmt: skip

# Hub id -> (transformers model type, config values).
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "meta-llama/Llama-2-7b-hf": ("llama", _sizes(4096, 11008, 32, 32, **_LLAMA_2)),
    "meta-llama/Llama-2-7b-chat-hf": ("llama", _sizes(4096, 11008, 32, 32, **_LLAMA_2)),
    "meta-llama/Llama-2-13b-hf": ("llama", _sizes(5120, 13824, 40, 40, **_LLAMA_2)),
    "meta-llama/Llama-2-13b-chat-hf": ("llama", _sizes(5120, 13824, 40, 40, **_LLAMA_2)),
    "meta-llama/Meta-Llama-3-8B": ("llama", _LLAMA_3_8B),
    "meta-llama/Meta-Llama-3-8B-Instruct": ("llama", _LLAMA_3_8B),
    "meta-llama/Llama-3.1-8B": ("llama", _LLAMA_3_8B),
    "meta-llama/Llama-3.1-8B-Instruct": ("llama", _LLAMA_3_8B),
    "meta-llama/Llama-3.2-1B": ("llama", _LLAMA_3_2_1B),
    "meta-llama/Llama-3.2-1B-Instruct": ("llama", _LLAMA_3_2_1B),
    "meta-llama/Llama-3.2-3B": ("llama", _LLAMA_3_2_3B),
    "meta-llama/Llama-3.2-3B-Instruct": ("llama", _LLAMA_3_2_3B),
    "mistralai/Mistral-7B-v0.1": ("mistral", {**_MISTRAL_7B, "vocab_size": 32000}),
    "mistralai/Mistral-7B-Instruct-v0.2": ("mistral", {**_MISTRAL_7B, "vocab_size": 32000}),
    "mistralai/Mistral-7B-v0.3": ("mistral", {**_MISTRAL_7B, "vocab_size": 32768}),
    "mistralai/Mistral-7B-Instruct-v0.3": ("mistral", {**_MISTRAL_7B, "vocab_size": 32768}),
    "Qwen/Qwen2.5-0.5B-Instruct": (
        "qwen2",
        _sizes(896, 4864, 24, 14, **_QWEN_2_5, num_key_value_heads=2, tie_word_embeddings=True),
    ),
    "Qwen/Qwen2.5-1.5B-Instruct": (
        "qwen2",
        _sizes(1536, 8960, 28, 12, **_QWEN_2_5, num_key_value_heads=2, tie_word_embeddings=True),
    ),
    "Qwen/Qwen2.5-7B": ("qwen2", _QWEN_2_5_7B),
    "Qwen/Qwen2.5-7B-Instruct": ("qwen2", _QWEN_2_5_7B),
    "HuggingFaceTB/SmolLM2-135M": (
        "llama",
        _sizes(576, 1536, 30, 9, num_key_value_heads=3, **_SMOLLM_2),
    ),
    "HuggingFaceTB/SmolLM2-135M-Instruct": (
        "llama",
        _sizes(576, 1536, 30, 9, num_key_value_heads=3, **_SMOLLM_2),
    ),
    "HuggingFaceTB/SmolLM2-360M-Instruct": (
        "llama",
        _sizes(960, 2560, 32, 15, num_key_value_heads=5, **_SMOLLM_2),
    ),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": ("llama", _sizes(2048, 8192, 24, 32, **_SMOLLM_2)),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": (
        "llama",
        _sizes(
            2048, 5632, 22, 32, vocab_size=32000, num_key_value_heads=4, tie_word_embeddings=False
        ),
    ),
}
DEMO_ARCHITECTURE = "HuggingFaceTB/SmolLM2-135M-Instruct"


@dataclass(frozen=True)
class Architecture:
    """A base model's, loaded once, and only where what follows from it is not remembered."""

    model: ModelSection
    cache_dir: str | None = None

    @cached_property
    def described(self) -> Any:
        """transformers' config, as of `architecture_of`."""
        return architecture_of(self.model, self.cache_dir)

    def remembered(self, of: list[Any], compute: Callable[[], Any], read: Callable[[Any], T]) -> T:
        """What `compute` makes of the architecture and of `of`, as of `causal_core.remembered`."""
        if self._key is None:
            return read(compute())
        return remembered(cache_root(self.cache_dir), [*of, self._key], compute, read)

    @cached_property
    def _key(self) -> Any:
        """Stands for what is loaded; None where code of the model's own decides."""
        if self.model.trust_remote_code:
            return None
        if (known := _known(self.model)) is not None:
            return known
        from causal_core.pretrained.described import ARCHITECTURE, files_digest

        content = files_digest(self.model, self.cache_dir, ARCHITECTURE)
        return self.described.to_json_string() if content is None else content


def _known(model: ModelSection) -> tuple[str, dict[str, Any]] | None:
    """What the table says of a model; None where a directory goes first, or it says nothing."""
    name = model.name_or_path
    if name == "demo":
        return ARCHITECTURES[DEMO_ARCHITECTURE]
    return None if Path(name).expanduser().is_dir() else ARCHITECTURES.get(name)


def architecture_of(model: ModelSection, cache_dir: str | None = None) -> Any:
    """The transformers config of a base model; no weights, and no network where it is known.

    Raises:
        ModelError: it is in no local directory, not in the table, and the hub does not give it.
    """
    from transformers import AutoConfig

    if (known := _known(model)) is not None:
        kind, values = known
        return AutoConfig.for_model(kind, **values)
    from causal_core.pretrained.hub import ask_hub, hub_refused
    from causal_core.pretrained.loading import UNKNOWN_ARCHITECTURE, cannot_load, resolve_model

    source = resolve_model(model, cache_dir)
    ask_hub(source)
    try:
        return AutoConfig.from_pretrained(
            source, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except (OSError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if first.startswith(UNKNOWN_ARCHITECTURE):
            raise ModelError(cannot_load("architecture", source, error)) from error
        why = hub_refused(source) or (
            f"{first[:300].rstrip('.')}. Memory is planned from a model's config.json: give a "
            "local directory or a hub id that is reachable."
        )
        raise ModelError(
            f"the architecture of {shown(source)} cannot be read: {why} Known without network are "
            f"{', '.join(sorted(ARCHITECTURES))}"
        ) from error
