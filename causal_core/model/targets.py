"""Which modules get an adapter: `lora.target_modules` as names of this model's own modules."""

from __future__ import annotations

from typing import Any

from torch import nn

from causal_core.config_lora import ALL_LINEAR, AUTO, LoraSection
from causal_core.errors import ModelError

# Where PEFT's own table has no entry for an architecture: the projections of queries and values,
# which are its choice elsewhere, or what they are fused into.
_QUERY_AND_VALUE = (
    ("q_proj", "v_proj"), ("qkv_proj",), ("query_key_value",), ("Wqkv",),
    ("q_b_proj", "kv_b_proj"), ("q_proj", "kv_b_proj"),  # out of latent vectors, as in DeepSeek
)  # fmt: skip


def target_modules(base: Any, lora: LoraSection) -> list[str]:
    """Names of the linear modules of `base` to adapt.

    Only those of the decoder can be: logits are computed for labels alone, without a gradient of
    the output layer's own weights, and the embedding is no linear module.

    Raises:
        ModelError: some of them cannot be adapted; with those that can.
    """
    named = base.get_decoder().named_modules()
    linear = sorted({n.rpartition(".")[2] for n, m in named if isinstance(m, nn.Linear)})
    if not linear:
        raise ModelError(
            f"{type(base).__name__} has no linear modules in its decoder, so that LoRA has nothing "
            "to adapt: use one of the architectures in docs/models.md"
        )
    chosen = lora.target_modules
    if chosen == ALL_LINEAR:
        _refuse_ambiguous(base, linear)
        return linear
    if chosen == AUTO:
        for names in (_from_peft(base), *_QUERY_AND_VALUE):
            if names and set(names) <= set(linear):
                return list(names)
        raise ModelError(
            f"lora.target_modules: {AUTO} has no choice for {type(base).__name__}; choose from "
            f"{', '.join(linear)}, or give {ALL_LINEAR}"
        )
    wanted: list[str] = [chosen] if isinstance(chosen, str) else list(chosen)
    missing = [name for name in wanted if name not in linear]
    if not missing:
        _refuse_ambiguous(base, wanted)
        return wanted
    names_of_all = {n.rpartition(".")[2] for n, _ in base.named_modules()}
    untrainable = [name for name in missing if name in names_of_all]
    why = (
        f"{', '.join(untrainable)} cannot be adapted in {type(base).__name__}"
        if untrainable == missing
        else f"{', '.join(missing)} not among the linear modules of {type(base).__name__}"
    )
    raise ModelError(
        f"lora.target_modules: {why}; choose from {', '.join(linear)}, or give {ALL_LINEAR} or "
        f"{AUTO}"
    )


def _refuse_ambiguous(base: Any, names: list[str]) -> None:
    """Refuses names that modules of other kinds have, too: PEFT goes by names alone."""
    for place, module in base.named_modules():
        name = place.rpartition(".")[2]
        if name in names and not isinstance(module, nn.Linear):
            raise ModelError(
                f"lora.target_modules: in {type(base).__name__} a linear module is named {name!r}, "
                f"and so is {place} ({type(module).__name__}), which LoRA does not adapt: name "
                f"modules that are told apart by their names instead of {ALL_LINEAR}"
            )


def _from_peft(base: Any) -> list[str] | None:
    """PEFT's choice for the architecture, where its table has names for it."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as TABLE

    names = TABLE.get(base.config.model_type)
    return list(names) if isinstance(names, (list, tuple)) else None
