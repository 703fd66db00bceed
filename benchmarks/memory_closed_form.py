"""The closed form against the trace, on random Llama-like models: two ways that share no code.

    python -m benchmarks.memory_closed_form [--count 12] [--seed 0]

A plain LoRA step (transformers + PEFT + bitsandbytes): bfloat16 compute, float32 LoRA on the seven
projections, no dropout, attention without a mask, logits on label positions only, 8-bit AdamW; with
and without checkpointing, NF4 or not. Figures are *allocated* bytes. The
formulas are counted by hand from what each operation saves for its backward:

N tokens, n label tokens, L layers, H hidden, I intermediate, K key/value width, h heads, r rank,
V vocabulary, P trained parameters.
"""

from __future__ import annotations

import argparse
import random
import statistics
from dataclasses import dataclass
from typing import Any

import bitsandbytes as bnb
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from causal_core.config_lora import LLAMA_PROJECTIONS
from causal_core.memory.kernels import DeviceKernels, held_inside
from causal_core.memory.trace import quantize_nf4
from causal_core.memory.tracker import StorageTracker

GIB = 2**30

NF4_BYTES = 1 / 2 + 1 / 64 + 4 / 16384  # a weight, its 8-bit block scale, the scales' own scale
ADAM_8BIT_BYTES = 2 * (1 + 4 / 256)  # two moments of a byte, in blocks of 256 with a float32 scale


@dataclass(frozen=True)
class ClosedForm:
    """The numbers that the formulas use."""

    layers: int  # L
    hidden: int  # H
    intermediate: int  # I
    key_value: int  # K
    heads: int  # h
    vocabulary: int  # V
    tied: bool
    rank: int  # r
    nf4: bool
    eight_bit: bool
    head_parameters: int = 0  # trained parameters beside the adapter

    @property
    def adapter_parameters(self) -> int:
        """Of LoRA on q, k, v, o, gate, up and down."""
        attention = 4 * self.hidden + 2 * (self.hidden + self.key_value)
        return self.layers * self.rank * (attention + 3 * (self.hidden + self.intermediate))

    def static_bytes(self) -> int:
        """Weights, adapter and optimizer state."""
        h, i, k = self.hidden, self.intermediate, self.key_value
        linear = self.layers * (2 * h * h + 2 * h * k + 3 * h * i)
        embeddings = 2 * self.vocabulary * h * (1 if self.tied else 2)
        trained = self.adapter_parameters + self.head_parameters
        state = ADAM_8BIT_BYTES if self.eight_bit else 8
        return int(embeddings + linear * (NF4_BYTES if self.nf4 else 2) + trained * (4 + state))

    def saved_per_token(self) -> int:
        """Bytes that one layer saves for its backward, per token."""
        return (
            36 * self.hidden
            + 10 * self.intermediate
            + 4 * self.key_value
            + 28 * self.rank
            + 4 * self.heads
        )

    def peak_bytes(self, tokens: int, labels: int, checkpointing: bool) -> int:
        """Peak of a step of one micro-batch."""
        n, h, i = tokens, self.hidden, self.intermediate
        gradients = 4 * (self.adapter_parameters + self.head_parameters)
        own = 4 * self.head_parameters
        logits = 14 * labels * self.vocabulary + 6 * n * h
        saved = n * self.saved_per_token()
        if not checkpointing:
            layer = 8 * n * i + 6 * n * h + own + gradients // self.layers
            return self.static_bytes() + self.layers * saved + max(logits, layer)
        inputs = 2 * n * h * self.layers
        layer = saved + 8 * n * i + max(inputs + own, 2 * n * h + gradients)
        return self.static_bytes() + max(inputs + logits, layer)


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
