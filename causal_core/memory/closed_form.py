"""Memory of a plain LoRA step in closed form: a check that shares no code with the trace.

For Llama-like models with bfloat16 compute, float32 LoRA on all seven projections, fused attention
without a mask, and no dropout; *allocated* bytes, without inputs. Counted by hand from what each
operation saves for its backward.

N tokens, n label tokens, L layers, H hidden, I intermediate, K key/value width, h heads, r rank,
V vocabulary, P trained parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

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
