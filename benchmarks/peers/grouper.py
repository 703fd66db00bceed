"""PrefixGrouper as its guide says, with torch's attention: a prefix and its suffixes as one group.

Its transformers adapter is for FlashAttention, which a CPU does not have, so the attention
function is the one of the guide's general way. It shares one prefix a group: what some of a row's
branches have in common beyond what all of them have is computed for each. Where nothing is in
common, or a row has one branch only, there is no group and it does not apply.

Shape legend: G groups, P prefix and S suffix tokens at most, h heads, q queries, k keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from prefix_grouper import PrefixGrouper
from torch import Tensor
from transformers import AttentionInterface

from benchmarks.peers.contender import Loop
from benchmarks.peers.data_sets import answered
from benchmarks.peers.models import copy_adapter, lora_config
from benchmarks.peers.objectives import Objective
from causal_core.config import LoraSection
from causal_core.model.causal_model import CausalModel
from causal_core.tokens.triplet import TripletTokens

TITLE = "PrefixGrouper"
ATTENTION = "grouped_prefix"


def applies(rows: Sequence[TripletTokens]) -> bool:
    """Whether the branches of every row are a group."""
    return all(len(answered(row)) > 1 and common_prefix(row) for row in rows)


def grouped(
    ours: CausalModel, base: Any, objective: Objective, batch: int, lora: LoraSection
) -> Loop:
    """A loop over forwards of `batch` groups each, for the mean over the tokens of all answers."""
    from peft import get_peft_model

    AttentionInterface.register(ATTENTION, _attention)
    base.set_attn_implementation(ATTENTION)
    model = get_peft_model(base, lora_config(base, lora))
    copy_adapter(ours, model)
    model.train()
    rows = sorted(objective.rows, key=lambda row: sum(len(p) for p, _ in answered(row)))
    parts = [rows[i : i + batch] for i in range(0, len(rows), batch)]

    def step() -> float:
        total = 0.0
        for part in parts:
            loss = _cross_entropy(model, part) / objective.labels
            loss.backward()
            total += float(loss.detach())
        return total

    return Loop(TITLE, model, step, batch)


def common_prefix(row: TripletTokens) -> int:
    """Tokens that all prompts of a row begin with, short of the shortest."""
    prompts = [prompt for prompt, _ in answered(row)]
    first, last, shortest = min(prompts), max(prompts), min(map(len, prompts))
    differ = (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    return min(next(differ, shortest), shortest - 1)


def _cross_entropy(model: Any, rows: Sequence[TripletTokens]) -> Tensor:
    """Summed over the answers of all branches."""
    prefixes, suffixes, answers = [], [], []
    for row in rows:
        shared = common_prefix(row)
        branches = answered(row)
        prefixes.append(branches[0][0][:shared])
        suffixes += [prompt[shared:] + answer for prompt, answer in branches]
        answers += [answer for _, answer in branches]
    (prefix_GP, prefix_mask), (suffix_S, suffix_mask) = _padded(prefixes), _padded(suffixes)
    grouper = PrefixGrouper.from_ungrouped_masks(
        prefix_mask, suffix_mask, [len(answered(row)) for row in rows], padding_mode="right"
    )
    ids = grouper.concat_input(prefix_GP, prefix_mask, suffix_S, suffix_mask)
    base = model.get_base_model()
    hidden = base.get_decoder()(
        input_ids=ids,
        attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool),  # its own masks are used
        position_ids=_positions(grouper, ids.shape[1]),
        use_cache=False,
        prefix_grouper=grouper,
    ).last_hidden_state
    _, _, suffix_hidden, _ = grouper.split_output(hidden)
    where = [
        suffix_hidden[i, len(suffix) - len(answer) - 1 : len(suffix) - 1]
        for i, (suffix, answer) in enumerate(zip(suffixes, answers, strict=True))
    ]
    logits = base.get_output_embeddings()(torch.cat(where))
    targets = torch.tensor([token for answer in answers for token in answer])
    return F.cross_entropy(logits, targets, reduction="sum")


def _padded(sequences: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """Right-padded ids and mask."""
    width = max(map(len, sequences))
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    mask = torch.zeros(len(sequences), width, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = True
    return ids, mask


def _positions(grouper: PrefixGrouper, width: int) -> Tensor:
    """Every suffix goes on where its prefix ends."""
    positions = torch.zeros(len(grouper.group_info), width, dtype=torch.long)
    for row, info in enumerate(grouper.group_info.info_list):
        found = [torch.arange(info.prefix_len)]
        found += [info.prefix_len + torch.arange(length) for length in info.suffix_lens]
        joined = torch.cat(found)
        positions[row, : len(joined)] = joined
    return positions


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    *,
    prefix_grouper: PrefixGrouper,
    **more: Any,
) -> tuple[Tensor, None]:
    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        allowed = _causal(mask, q.shape[2])
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=allowed, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
        return out.transpose(1, 2)

    return prefix_grouper.forward(attend, query, key, value), None


def _causal(mask: Tensor, queries: int) -> Tensor:
    """[G, 1, q, k]: the last `queries` of the keys look back; padding looks at itself alone."""
    keys = mask.shape[1]
    place = torch.arange(keys)
    own = place[keys - queries :, None] == place[None]
    back = place[keys - queries :, None] >= place[None]
    return ((back & mask[:, None, :].bool()) | own)[:, None]
