"""The section of the configuration tree that names the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from causal_core.config_sections import MOST, Section


class WeightedFile(Section):
    """Training files whose rows come more or less often than once per epoch."""

    path: str = Field(description="As a file of data.train.")
    weight: float = Field(
        1.0,
        gt=0,
        le=1000,
        description="How often each row comes per epoch: 2 is twice, 0.25 every fourth row.",
    )


class DataSection(Section):
    """Triplet files. `FILE#SPLIT` takes the rows of one split out of a file with several; `*` in a
    name stands for several files."""

    train: list[str | WeightedFile] = Field(
        default_factory=list, description="Files, or {path: FILE, weight: NUMBER}."
    )
    validation: list[str] = Field(default_factory=list, description="One file or a list of them.")
    test: dict[str, Annotated[list[str], Field(min_length=1)]] = Field(
        default_factory=dict, description="Test sets by name, e.g. {seen: [...], novel: [...]}."
    )
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="Where rows of another layout have the fields of a triplet, e.g. "
        "{benign_input: question, benign_output: answer.text}; numbers count items of a list.",
    )
    cache_dir: str | None = Field(
        None, description="Token cache; default: $CAUSAL_RAY_CACHE or ~/.cache/causal-ray."
    )
    max_length: int = Field(
        1024, ge=16, le=2**24, description="Longest prompt + answer, in tokens."
    )
    overlong: Literal["error", "drop"] = Field(
        "error", description="What to do with longer triplets; `drop` lists them. Never truncated."
    )
    limit_train: int | None = Field(
        None, ge=1, le=MOST, description="Use only the first N training rows."
    )
    limit_validation: int | None = Field(None, ge=1, le=MOST, description="Likewise.")
    attacks_per_row: int | None = Field(
        None,
        ge=1,
        le=256,
        description="Injections of a training row that are used: its first ones. None: all.",
    )
    fresh_attacks: bool = Field(
        False,
        description="Compose the attacks of training rows anew in every epoch, as many as a row "
        "has, in place of those of the file.",
    )
    overlap: Literal["error", "warn"] = Field(
        "error", description="What to do when a prompt (S, U) of one split is in another."
    )

    def weighted_files(self) -> list[WeightedFile]:
        """The training files, each with its weight."""
        return [WeightedFile(path=f) if isinstance(f, str) else f for f in self.train]

    @field_validator("train", "validation", mode="before")
    @classmethod
    def _one_path_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | Mapping) else value

    @field_validator("test", mode="before")
    @classmethod
    def _one_test_path_is_a_list(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: [v] if isinstance(v, str) else v for k, v in value.items()}
        return value
