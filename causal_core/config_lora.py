"""The adapter section of the configuration."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from causal_core.config_sections import MOST_WEIGHT, Section

LLAMA_PROJECTIONS = (
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
)
AUTO, ALL_LINEAR = "auto", "all-linear"  # of lora.target_modules
ModuleNames = Annotated[list[str], Field(min_length=1)]


class LoraSection(Section):
    """LoRA adapter (PEFT)."""

    rank: int = Field(16, ge=1, le=2**14, description="Of the two matrices of each module.")
    alpha: float = Field(
        32.0, gt=0, le=MOST_WEIGHT, description="Their product is scaled by alpha / rank."
    )
    dropout: float = Field(0.05, ge=0, lt=1, description="Of the adapter's input, in training.")
    target_modules: Literal["auto", "all-linear"] | ModuleNames = Field(
        list(LLAMA_PROJECTIONS),
        description="Linear modules of the decoder by name; `all-linear`: all; `auto`: PEFT's "
        "choice for the architecture (queries and values, or what they are fused into).",
    )
    init_from: str | None = Field(
        None,
        description="Start from this adapter instead of one that changes nothing: a run directory, "
        "a directory of a PEFT adapter or a hub id. The head starts anew.",
    )

    def shape(self) -> dict[str, Any]:
        """What says which weights there are, wherever they started from."""
        return self.model_dump(exclude={"init_from"})
