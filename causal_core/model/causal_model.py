"""The model that is trained: frozen base, LoRA adapter, causal projection head.

`CausalModel.forward` takes a packed prefix-tree batch and returns branch representations and the
last hidden states where a label is predicted, nothing else; `CausalModel.logits` is for some of
them at a time.

Shape legend: R rows, N nodes, B branches a row, Z pooled branches, H hidden width, n label
positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from causal_core.config import Config, LoraSection
from causal_core.device import at_least_float32
from causal_core.errors import ModelError
from causal_core.files import cache_root
from causal_core.model.attention import Tree, layer_windows, use_tree_attention
from causal_core.model.flex import prepare
from causal_core.model.frozen_layers import use_fused_layers
from causal_core.model.lora import use_fused_lora
from causal_core.model.matmul import use_frozen_linear
from causal_core.model.output_tail import OutputTail
from causal_core.model.plain_peft import without_bitsandbytes
from causal_core.model.targets import target_modules
from causal_core.remembered import remembered
from causal_core.trees.blocks import TreeBlocks, TreeRows
from causal_core.trees.intervals import TreeIntervals
from causal_core.trees.path_cache import Kept, PathCache
from causal_core.trees.prefix_tree import TreeBatch

if TYPE_CHECKING:
    from peft import LoraConfig

# Kinds of layers, as transformers' configs name them, that attend to a path and nothing else.
TREE_LAYERS = frozenset({"full_attention", "sliding_attention"})


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

    z: Tensor  # [Z, H] float32: projected representations of the pooled branches
    pooled: Tensor  # [Z, H] float32: mean last hidden state over each prompt
    label_hidden: Tensor  # [n, H]: last hidden states that predict labels
    kept: Kept = ()  # keys and values of each layer, where they are asked for


class CausalModel(nn.Module):
    """A PEFT model plus the causal projection head; only adapter and head require gradients."""

    def __init__(self, peft_model: Any, hidden_size: int) -> None:
        super().__init__()
        self.peft_model = peft_model
        self.projection = CausalProjection(hidden_size)
        self._logits_of = OutputTail(peft_model.get_base_model())
        self.compiled_layers: list[tuple[Any, Any]] = []  # and how each is called (`compiled.py`)

    def forward(self, batch: TreeBatch, keep: bool = False) -> CausalOutput:
        """One forward over packed trees; see `TreeBatch` for the shapes.

        Args:
            keep: Give the keys and values of each layer, too: answers go on from here. They are
                returned, not put into a list of the caller's, which DeepSpeed's hooks would copy.
        """
        base = self.peft_model.get_base_model()
        tree: TreeBlocks | TreeIntervals | TreeRows = (
            batch.blocks or batch.intervals or TreeRows(batch.attention_mask, batch.position_ids)
        )
        windows = [None, *layer_windows(base.config.get_text_config())]
        if isinstance(tree, TreeIntervals):
            prepare(tree, windows)
        elif isinstance(tree, TreeRows):
            for window in windows:
                tree.within(window)
        kept: list[tuple[Tensor, Tensor]] = []
        tree.attended, tree.kept = [], kept if keep else None
        hidden_RNH = base.get_decoder()(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            use_cache=False,
            prefix_tree=tree,
        ).last_hidden_state
        tree.kept = None
        if not (self.training and self.compiled_layers):  # which were checked as they are
            _check_layers(base, tree)
        # Pooling in float32: a mean over hundreds of bfloat16 states loses what tells U from U'.
        hidden_wide = at_least_float32(hidden_RNH)
        pooled_RBH = torch.bmm(batch.pool_weights.to(hidden_wide.dtype), hidden_wide)
        pooled_ZH = pooled_RBH.flatten(0, 1).index_select(0, batch.pool_index)
        return CausalOutput(
            z=self.projection(pooled_ZH),
            pooled=pooled_ZH,
            label_hidden=hidden_RNH.flatten(0, 1).index_select(0, batch.label_index),
            kept=kept,
        )

    def train(self, mode: bool = True) -> CausalModel:
        super().train(mode)
        for layer, call in self.compiled_layers:
            layer._compiled_call_impl = call if mode else None  # where torch keeps it
        return self

    def next_hidden(self, tokens_R: Tensor, paths: PathCache) -> Tensor:
        """Last hidden states [R, H] of one more token on each path of the cache."""
        return self.continued_hidden(tokens_R[:, None], paths)[:, 0]

    def continued_hidden(self, tokens_RN: Tensor, paths: PathCache) -> Tensor:
        """Last hidden states [R, N, H] of N more tokens on each path of the cache."""
        base = self.peft_model.get_base_model()
        positions_RN = paths.grow(tokens_RN.device, tokens_RN.shape[1])
        hidden_RNH = base.get_decoder()(
            input_ids=tokens_RN,
            attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=tokens_RN.device),
            position_ids=positions_RN,
            use_cache=False,
            prefix_tree=paths,
        ).last_hidden_state
        _check_layers(base, paths)
        return hidden_RNH

    def logits(self, hidden: Tensor) -> Tensor:
        """Last hidden states [..., H] -> [..., V]."""
        return self._logits_of(hidden)

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Name -> parameter of everything that is trained, in a fixed order."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}


def _check_layers(base: Any, tree: Tree) -> None:
    """Every layer must have looked at the tree, through its window: in any other, branches would
    see each other, or more than in a forward of their own."""
    config = base.config.get_text_config()
    attended, layers = len(tree.attended), config.num_hidden_layers
    if attended != layers:
        raise ModelError(
            f"{type(base).__name__}: {attended} of {layers} layers go through transformers' "
            "AttentionInterface, and in the others prefix trees cannot be computed: use one of the "
            "architectures in docs/models.md"
        )
    windows = [w for w in layer_windows(config) if w is not None]
    told = sum(window is not None for window in tree.attended)
    if told < len(windows) and tree.within(windows[0]) is not tree.within(None):
        raise ModelError(
            f"{type(base).__name__}: by its config {len(windows)} layers have a window of "
            f"{windows[0]} tokens (sliding_window), and {told} ask their attention for one; the "
            "others leave it to a mask that prefix trees do not have. Keep the rows within the "
            f"window (data.max_length={windows[0]}), or use one of the architectures in "
            "docs/models.md"
        )


def check_architecture(base: Any) -> None:
    """Refuses a base that prefix trees cannot be computed with (`ModelError`)."""
    check_layer_types(base.config)
    if not base._supports_attention_backend:
        raise ModelError(
            f"{type(base).__name__} does not go through transformers' AttentionInterface, so "
            "prefix trees cannot be computed with it: use one of the architectures in "
            "docs/models.md"
        )
    if base.get_decoder() is base.get_output_embeddings():
        raise ModelError(
            f"{type(base).__name__} does not say which of its modules is the decoder (its output "
            "layer stands there): use one of the architectures in docs/models.md"
        )


def check_layer_types(described: Any) -> None:
    """Refuses a transformers config with layers that do more than attend to a path.

    Raises:
        ModelError: names the kinds of those layers.
    """
    kinds = getattr(described.get_text_config(), "layer_types", None) or ()
    unknown = sorted(set(kinds) - TREE_LAYERS)
    if unknown:
        raise ModelError(
            f"{described.model_type} has layers of {', '.join(unknown)}, which prefix trees cannot "
            f"be computed with (they can with {', '.join(sorted(TREE_LAYERS))}): use one of the "
            "architectures in docs/models.md"
        )


def build_model(
    base: Any, lora: LoraSection, seed: int, gradient_checkpointing: bool = False
) -> CausalModel:
    """Base + fresh adapter + fresh head, initialised from `seed` alone.

    Raises:
        ModelError: a kind of layer that trees cannot be computed with, or a target module that
            cannot be adapted.
    """
    check_architecture(base)
    with without_bitsandbytes(base):
        from peft import LoraConfig

        config = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,  # type: ignore[arg-type]
            lora_dropout=lora.dropout,
            target_modules=target_modules(base, lora),
            task_type="CAUSAL_LM",
        )
    return adapt(base, config, seed, gradient_checkpointing)


def adapt(
    base: Any, lora: LoraConfig, seed: int, gradient_checkpointing: bool = False
) -> CausalModel:
    """`build_model` for any configuration of PEFT's LoRA that fits a base of a known architecture
    (`check_architecture`)."""
    use_tree_attention(base)
    torch.manual_seed(seed)
    with without_bitsandbytes(base):
        from peft import get_peft_model

        peft_model = get_peft_model(base, lora)
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


def count_parameters(model: Any) -> dict[str, int]:
    """Trainable parameters by part, and the frozen ones' count (packed 4-bit counted unpacked)."""
    counts = {"adapter": 0, "projection": 0, "base": 0}
    for name, parameter in model.named_parameters():
        elements = getattr(parameter, "ds_numel", parameter.numel())  # whole, where ZeRO-3 shards
        if name.startswith("projection."):
            counts["projection"] += elements
        elif parameter.requires_grad:
            counts["adapter"] += elements
        else:
            packed = type(parameter).__name__ == "Params4bit"
            counts["base"] += elements * (2 if packed else 1)
    return counts


def parameter_counts(config: Config) -> dict[str, int]:
    """Adapter, projection and base parameters, counted once on a model without weights.

    Raises:
        ModelError: its config cannot be loaded, or is of no known architecture.
    """
    from causal_core.pretrained.described import architecture_key
    from causal_core.pretrained.loading import base_without_weights, load_architecture

    model, cache_dir = config.model, config.data.cache_dir

    def count() -> dict[str, int]:
        base = base_without_weights(load_architecture(model, cache_dir), model)
        with torch.device("meta"):
            return count_parameters(build_model(base, config.lora, config.run.seed))

    key = architecture_key(model, cache_dir)
    if key is None:
        return count()
    of = ["parameters", key, config.lora.shape()]
    return remembered(cache_root(cache_dir), of, count, _read_counts)


def _read_counts(found: Any) -> dict[str, int]:
    return {part: int(found[part]) for part in ("adapter", "projection", "base")}
