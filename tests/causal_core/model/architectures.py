"""The architectures that the exactness test goes through, each built tiny from its own config.

What stands here and what the test finds is `docs/models.md`:

    python -m tests.causal_core.model.architectures > docs/models.md
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from tests.tiny import VOCABULARY

WINDOW = 5  # shorter than the prompts
FULL, SLIDING = "full_attention", "sliding_attention"
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ATTENTION_ONLY = PROJECTIONS[:4]


@dataclass(frozen=True)
class Architecture:
    """One row of the table."""

    name: str
    kind: str  # transformers' model type
    own: str  # what it has beside a Llama
    options: dict[str, Any] = field(default_factory=dict)
    modules: list[str] = field(default_factory=lambda: list(PROJECTIONS))
    refused: str | None = None  # what the refusal names

    def config(self) -> Any:
        """Its transformers config."""
        from transformers import AutoConfig

        sizes = {
            "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        }  # fmt: skip
        return AutoConfig.for_model(self.kind, **{**sizes, **self.options})

    def base(self, seed: int = 0) -> Any:
        """A frozen model of it in float64, deterministic."""
        from transformers import AutoModelForCausalLM

        torch.manual_seed(seed)
        base = AutoModelForCausalLM.from_config(self.config(), dtype=torch.float64)
        base.set_experts_implementation("eager")  # the grouped products know no float64
        with torch.no_grad():
            for name, parameter in base.named_parameters():
                if "sinks" in name:
                    parameter.uniform_(-1.0, 1.0)
                elif "norm" in name:
                    parameter.add_(0.2 * torch.rand_like(parameter))
        return base.requires_grad_(False)


_ALTERNATING = {"layer_types": [SLIDING, FULL, SLIDING], "sliding_window": WINDOW}

ARCHITECTURES = (
    Architecture("Llama 2 and 3", "llama", "nothing"),
    Architecture("Mistral", "mistral", "a window in every layer", {"sliding_window": WINDOW}),
    Architecture(
        "Qwen 2 and 2.5", "qwen2", "biases; a window in some layers",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    Architecture("Qwen 3", "qwen3", "norms of queries and keys", {"head_dim": 16}),
    Architecture("Gemma", "gemma", "scaled embeddings, GELU", {"head_dim": 16}),
    Architecture(
        "Gemma 2", "gemma2", "windows, soft caps of attention scores and logits",
        {**_ALTERNATING, "head_dim": 16, "attn_logit_softcapping": 2.0,
         "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 4},
    ),
    Architecture(
        "Gemma 3 (text)", "gemma3_text", "windows with their own positions",
        {**_ALTERNATING, "head_dim": 16},
    ),
    Architecture(
        "Phi-3", "phi3", "fused projections, a window", {"sliding_window": WINDOW},
        ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
    ),
    Architecture(
        "Granite", "granite", "multipliers of embeddings, residuals, attention and logits",
        {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.3,
         "logits_scaling": 4.0},
    ),
    Architecture("Cohere", "cohere", "parallel layers, scaled logits", {"logit_scale": 0.25}),
    Architecture(
        "Cohere 2", "cohere2", "windows, parallel layers, scaled logits",
        {**_ALTERNATING, "logit_scale": 0.25, "head_dim": 8},
    ),
    Architecture("OLMo 2", "olmo2", "norms after the layers, norms of queries and keys"),
    Architecture(
        "SmolLM 3", "smollm3", "layers without positions", {"no_rope_layers": [1, 1, 0]}
    ),
    Architecture(
        "Mixtral", "mixtral", "experts, a window",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": WINDOW},
        ATTENTION_ONLY,
    ),
    Architecture(
        "GPT-OSS", "gpt_oss", "experts, attention sinks, windows",
        {**_ALTERNATING, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
        ATTENTION_ONLY,
    ),
    Architecture(
        "Qwen 3 (experts)", "qwen3_moe", "experts, norms of queries and keys",
        {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
        ATTENTION_ONLY,
    ),
    Architecture(
        "DeepSeek V3", "deepseek_v3", "experts, latent keys and values, heads of three widths",
        {"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 8,
         "qk_nope_head_dim": 6, "v_head_dim": 10, "n_routed_experts": 4, "num_experts_per_tok": 2,
         "n_group": 1, "topk_group": 1, "moe_intermediate_size": 16, "first_k_dense_replace": 1},
        ["q_b_proj", "kv_b_proj", "o_proj"],
    ),
    Architecture(
        "GLM 4", "glm4", "fused gates, norms around the layers, half of a head rotated",
        {"head_dim": 8}, [*ATTENTION_ONLY, "gate_up_proj", "down_proj"],
    ),
    Architecture(
        "StarCoder 2", "starcoder2", "biases, no gates, a window", {"sliding_window": WINDOW},
        [*ATTENTION_ONLY, "c_fc", "c_proj"],
    ),
    Architecture(
        "Phi-3.5 (experts)", "phimoe", "experts, a window that only its mask knows",
        {"sliding_window": WINDOW, "num_local_experts": 4}, ATTENTION_ONLY,
        refused="sliding_window",
    ),
    Architecture(
        "Doge", "doge", "a mask of its own in every layer", {}, ATTENTION_ONLY,
        refused="mask of its own",
    ),
    Architecture(
        "BLOOM", "bloom", "ALiBi", {"n_layer": 2, "n_head": 4}, ["query_key_value"],
        refused="AttentionInterface",
    ),
    Architecture(
        "ModernBERT decoder", "modernbert-decoder", "its output layer in its decoder's place",
        {"local_attention": 2 * WINDOW}, ["Wo"], refused="which of its modules is the decoder",
    ),
    Architecture(
        "Jamba", "jamba", "layers of a state space model, experts",
        {"use_mamba_kernels": False, "mamba_d_state": 4, "mamba_dt_rank": 4, "num_experts": 2},
        ATTENTION_ONLY, refused="linear_attention",
    ),
    Architecture(
        "Qwen 3 Next", "qwen3_next", "layers of linear attention",
        {"layer_types": ["linear_attention", FULL, "linear_attention"], "head_dim": 8,
         "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
         "shared_expert_intermediate_size": 16, "linear_num_value_heads": 2,
         "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
        ATTENTION_ONLY, refused="linear_attention",
    ),
    Architecture(
        "Llama 4 (text)", "llama4_text", "attention in chunks, experts",
        {"layer_types": ["chunked_attention", FULL, "chunked_attention"], "head_dim": 8,
         "attention_chunk_size": WINDOW, "num_local_experts": 2, "intermediate_size_mlp": 48},
        ATTENTION_ONLY, refused="chunked_attention",
    ),
)  # fmt: skip
_PAGE = """# Models

*Written by `python -m tests.causal_core.model.architectures > docs/models.md`.*

A prefix tree is computed by the model's own layers, with its own windows, soft caps, attention
sinks and multipliers, and its logits by its own code from the last hidden state on: what is trained
is what will be served. "Exact" is what `tests/causal_core/model/test_architectures.py` shows for a
tiny model of each architecture, in all layouts (flat in blocks for CPUs, flat under an interval
mask for GPUs, padded rows where a GPU has no kernel for that) and with prompts longer than its
windows: loss and every gradient equal those of separate forwards through the
library's reference attention, and so does generation.

| architecture | transformers' `model_type` | beside a Llama it has | prefix trees |
|---|---|---|---|
{rows}

Other architectures work where transformers' `AttentionInterface` serves all their layers. What the
attention of a layer asks for and is not known here (an option, a kind of layer, dropped attention
weights) is an error that names it.

`lora.target_modules` takes names of the decoder's linear modules, `all-linear` (all of them) or
`auto` (PEFT's choice for the architecture; where it has none, queries and values, or what they are
fused into, as in Phi-3's `qkv_proj`). The output layer and the embedding cannot be adapted. After
the first backward, a tensor that is to be trained and got no gradient at all is an error.

Every run begins with a self-test: its longest and its shortest triplet through the prefix tree, and
the attacked prompt of the one and the benign prompt of the other through the model's own plain
forward (the library's attention and layers, adapter on, no dropout).
Where log-probabilities of labels or pooled hidden states differ by more than rounding explains
(half of the digits of `model.dtype`), the run is refused with both numbers. Under ZeRO-3 on GPUs it
is left out: no device holds the weights. A test that passed is not repeated where nothing has
changed that it depends on (program, libraries, device, threads, model, adapter, the two rows); with
`model.trust_remote_code` it is.

Windows count the tokens of a path, as they do in a forward of that path alone. In flat trees, keys
outside of the window of every query of a block are not touched.

Where positions depend on the length of the whole sequence (`longrope`, as in Phi-3 with 128k
positions: other frequencies beyond `original_max_position_embeddings`), sequences of different
lengths share nothing: longer rows are refused. A window that a layer leaves to its mask is refused
where rows are longer than it.
"""


def page() -> str:
    """`docs/models.md`."""
    rows = []
    for a in ARCHITECTURES:
        verdict = "exact" if a.refused is None else f"refused: `{a.refused}`"
        rows.append(f"| {a.name} | `{a.kind}` | {a.own} | {verdict} |")
    return _PAGE.format(rows="\n".join(rows))


if __name__ == "__main__":
    print(page(), end="")
