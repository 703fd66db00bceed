"""The closed form against the trace, on random Llama-like models: two ways that share no code.

    python -m benchmarks.memory_closed_form [--count 12] [--seed 0]

A plain LoRA step (transformers + PEFT + bitsandbytes): bfloat16 compute, float32 LoRA on the seven
projections, no dropout, attention without a mask, logits on label positions only, 8-bit AdamW; with
and without checkpointing, NF4 or not. Figures are *allocated* bytes.
"""

from __future__ import annotations

import argparse
import random
import statistics
from typing import Any

import bitsandbytes as bnb
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from causal_core.config import LLAMA_PROJECTIONS
from causal_core.memory.closed_form import ClosedForm
from causal_core.memory.kernels import DeviceKernels, held_inside
from causal_core.memory.trace import quantize_nf4
from causal_core.memory.tracker import StorageTracker

GIB = 2**30


def traced(form: ClosedForm, tokens: int, labels: int, checkpointing: bool) -> int:
    """Peak of the second of two traced steps."""
    with torch.device("meta"):
        base = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=form.vocabulary, hidden_size=form.hidden,
                intermediate_size=form.intermediate, num_hidden_layers=form.layers,
                num_attention_heads=form.heads,
                num_key_value_heads=form.key_value * form.heads // form.hidden,
                tie_word_embeddings=form.tied, attn_implementation="sdpa",
            )
        ).to(torch.bfloat16)  # fmt: skip
    base.requires_grad_(False)
    if form.nf4:
        quantize_nf4(base, torch.bfloat16)
    with torch.device("meta"):
        model = get_peft_model(
            base,
            LoraConfig(r=form.rank, lora_dropout=0.0, target_modules=list(LLAMA_PROJECTIONS)),
        )
    if checkpointing:
        base.gradient_checkpointing_enable({"use_reentrant": False})
    tracker = StorageTracker("meta", 512, held_inside=held_inside)
    for parameter in model.parameters():
        tracker.assign(parameter.data, "base_weights")
        state: Any = getattr(parameter, "quant_state", None)
        if state is not None:
            tracker.assign(state.absmax, "quantization_state")
            tracker.assign(state.state2.absmax, "quantization_state")
    kernels = DeviceKernels("cuda", tracker)
    for layer in base.model.layers:
        for child in layer.children():
            kernels.inside(child)
    optimizer = bnb.optim.AdamW8bit([p for p in model.parameters() if p.requires_grad])
    model.train()

    def integers(*size: int) -> Tensor:
        return torch.empty(size, dtype=torch.long, device="meta")

    tracker.at("step")
    with tracker:
        for _ in range(2):
            hidden = base.model(input_ids=integers(1, tokens), use_cache=False).last_hidden_state
            logits = base.lm_head(hidden[0].index_select(0, integers(labels)))
            del hidden
            loss = F.cross_entropy(logits.float(), integers(labels))
            del logits
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            del loss
    return tracker.peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    errors: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(options.count):
        heads = rng.choice([16, 24, 32])
        form = ClosedForm(
            layers=rng.randint(12, 32), hidden=128 * heads, intermediate=rng.choice([8192, 11008]),
            key_value=128 * rng.choice([8, heads]), heads=heads,
            vocabulary=rng.choice([32000, 128256]), tied=rng.random() < 0.5,
            rank=rng.choice([8, 16, 64]), nf4=rng.random() < 0.5, eight_bit=True,
        )  # fmt: skip
        tokens = rng.choice([512, 1024, 2048, 4096])
        labels = tokens // rng.choice([4, 8, 16])
        for checkpointing in (False, True):
            found = form.peak_bytes(tokens, labels, checkpointing)
            expected = traced(form, tokens, labels, checkpointing)
            error = found / expected - 1
            errors[checkpointing].append(abs(error))
            print(f"L {form.layers:2} H {form.hidden} K {form.key_value:4} V {form.vocabulary:6} "
                  f"r {form.rank:2} {'nf4 ' if form.nf4 else 'bf16'} N {tokens:4} n {labels:4} "
                  f"checkpointing {checkpointing!s:5}: trace {expected / GIB:6.2f} GiB, closed "
                  f"form {found / GIB:6.2f} GiB, {error:+.1%}", flush=True)  # fmt: skip
    for checkpointing, goal in ((False, "3 %"), (True, "12 %")):
        found = errors[checkpointing]
        print(f"checkpointing {checkpointing}: mean {statistics.mean(found):.1%}, worst "
              f"{max(found):.1%} (goal {goal})")  # fmt: skip


if __name__ == "__main__":
    main()
