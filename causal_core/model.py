"""The model that is trained: frozen base, LoRA adapter, causal projection head.

`CausalModel.forward` takes a packed prefix-tree batch and returns branch representations and the
last hidden states where a label is predicted, nothing else; `CausalModel.logits` is for some of
them at a time.

Shape legend: R rows, N nodes, B branches a row, b branches a triplet, T triplets, H
hidden width, n label positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from causal_core.config import LoraSection, ModelConfig
from causal_core.demo_model import demo_model_directory
from causal_core.device import bnb_device_map, dtype_of
from causal_core.errors import ModelError
from causal_core.fused import use_fused_layers
from causal_core.lora import use_fused_lora
from causal_core.losses import at_least_float32
from causal_core.prefix_tree import TreeBatch
from causal_core.products import use_frozen_linear
from causal_core.tree_attention import ATTENTION


class CausalProjection(nn.Module):
    """Linear -> LayerNorm -> GELU -> Linear on pooled hidden states, in float32."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.input = nn.Linear(hidden_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)

    def forward(self, pooled: Tensor) -> Tensor:
        """[..., H] float32 -> [..., H] float32."""
        return self.output(nn.functional.gelu(self.norm(self.input(pooled))))


@dataclass
class CausalOutput:
    """What one forward over a tree batch gives."""

    z: Tensor  # [T, b, H] float32: projected representations of the pooled branches
    pooled: Tensor  # [T, b, H] float32: mean last hidden state over each prompt
    label_hidden: Tensor  # [n, H]: last hidden states that predict labels


class CausalModel(nn.Module):
    """A PEFT model plus the causal projection head; only adapter and head require gradients."""

    def __init__(self, peft_model: Any, hidden_size: int) -> None:
        super().__init__()
        self.peft_model = peft_model
        self.projection = CausalProjection(hidden_size)

    def forward(self, batch: TreeBatch) -> CausalOutput:
        """One forward over packed trees; see `TreeBatch` for the shapes."""
        base = self.peft_model.get_base_model()
        hidden_RNH = base.get_decoder()(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            use_cache=False,
            **({"tree_blocks": batch.blocks} if batch.blocks is not None else {}),
        ).last_hidden_state
        if batch.blocks is not None and batch.blocks.calls == 0:
            raise ModelError(
                f"{type(base).__name__} does not hand `tree_blocks` to its attention function, so "
                "prefix trees cannot be computed with it: use an architecture whose attention goes "
                "through transformers' AttentionInterface (Llama, Mistral, Qwen and most others)"
            )
        # Pooling in float32: a mean over hundreds of bfloat16 states loses what tells U from U'.
        hidden_wide = at_least_float32(hidden_RNH)
        pooled_RBH = torch.bmm(batch.pool_weights.to(hidden_wide.dtype), hidden_wide)
        pooled_ZH = pooled_RBH.flatten(0, 1).index_select(0, batch.pool_index)
        pooled_TbH = pooled_ZH.unflatten(0, (-1, batch.branches))
        return CausalOutput(
            z=self.projection(pooled_TbH),
            pooled=pooled_TbH,
            label_hidden=hidden_RNH.flatten(0, 1).index_select(0, batch.label_index),
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """Last hidden states [..., H] -> [..., V]."""
        base = self.peft_model.get_base_model()
        logits: Tensor = base.get_output_embeddings()(hidden)
        cap = getattr(base.config.get_text_config(), "final_logit_softcapping", None)
        return torch.tanh(logits / cap) * cap if cap else logits

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Name -> parameter of everything that is trained, in a fixed order."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}


def resolve_model(config: ModelConfig, cache_dir: str | None = None) -> str:
    """A directory or hub id that transformers can load (`demo` becomes the cached directory)."""
    if config.name_or_path == "demo":
        return str(demo_model_directory(cache_dir))
    path = Path(config.name_or_path).expanduser()
    looks_local = config.name_or_path.startswith((".", "/", "~"))
    if looks_local and not (path / "config.json").is_file():
        raise ModelError(
            f"model.name_or_path={config.name_or_path}: no model there (no config.json in it); "
            "give a directory in Hugging Face layout, a hub id, or `demo`"
        )
    return str(path) if path.is_dir() else config.name_or_path


def load_tokenizer(config: ModelConfig, cache_dir: str | None = None) -> Any:
    """The base model's tokenizer (`ModelError` when it cannot be loaded)."""
    from transformers import AutoTokenizer

    source = resolve_model(config, cache_dir)
    try:
        return AutoTokenizer.from_pretrained(
            source, revision=config.revision, trust_remote_code=config.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise ModelError(_cannot_load("tokenizer", source, error)) from error


def load_base(config: ModelConfig, device: torch.device, cache_dir: str | None = None) -> Any:
    """The frozen base model on a device, quantised if asked for (`ModelError` otherwise)."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    source = resolve_model(config, cache_dir)
    dtype = dtype_of(config.dtype)
    options: dict[str, Any] = {
        "dtype": dtype,
        "revision": config.revision,
        "trust_remote_code": config.trust_remote_code,
        "attn_implementation": "sdpa",
        "low_cpu_mem_usage": True,
    }
    if config.quantization == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        options["device_map"] = bnb_device_map(device)
    try:
        model = AutoModelForCausalLM.from_pretrained(source, **options)
    except (OSError, ValueError) as error:
        raise ModelError(_cannot_load("model", source, error)) from error
    model.requires_grad_(False)
    if config.quantization == "nf4":
        _keep_backward(model)
        return model
    return model.to(device)


def _keep_backward(model: nn.Module) -> None:
    """Keeps bitsandbytes from repacking 4-bit weights at the first forward in evaluation mode.

    It does so on CPUs with AVX512-BF16, into a format without a backward: after a validation, the
    gradient would silently miss all that flows through the base.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def build_model(
    base: Any, lora: LoraSection, seed: int, gradient_checkpointing: bool = False
) -> CausalModel:
    """Base + fresh adapter + fresh head, initialised from `seed` alone.

    Raises:
        ModelError: a target module is no linear module of this architecture.
    """
    from peft import LoraConfig, get_peft_model

    linear = {n.rpartition(".")[2] for n, m in base.named_modules() if isinstance(m, nn.Linear)}
    missing = [module for module in lora.target_modules if module not in linear]
    if missing:
        raise ModelError(
            f"lora.target_modules: {', '.join(missing)} not among the linear modules of "
            f"{type(base).__name__}, which are {', '.join(sorted(linear))}"
        )
    base.set_attn_implementation(ATTENTION)
    torch.manual_seed(seed)
    peft_model = get_peft_model(
        base,
        LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,  # type: ignore[arg-type]
            lora_dropout=lora.dropout,
            target_modules=list(lora.target_modules),
            task_type="CAUSAL_LM",
        ),
    )
    use_fused_lora(peft_model)
    use_fused_layers(base)
    use_frozen_linear(base.get_output_embeddings())
    config = base.config.get_text_config()
    model = CausalModel(peft_model, config.hidden_size)
    # The head sits where the last hidden state is: on the device of the output embeddings' input.
    model.projection.to(base.get_output_embeddings().weight.device, torch.float32)
    if gradient_checkpointing:
        base.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def _cannot_load(what: str, source: str, error: Exception) -> str:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return (
        f"the {what} of {source} cannot be loaded: {first[:300]}. Check model.name_or_path, the "
        "network or the hub token; a local directory works offline. Models that need their own "
        "Python code want model.trust_remote_code=true, after you have read that code."
    )
