"""Where a run stands, as a checkpoint's trainer_state.json holds it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

# Of JSON files in a checkpoint. A manifest names every tensor, some hundred bytes each.
MAX_JSON_BYTES = 64 * 2**20


@dataclass
class BestSoFar:
    """The best checkpoint so far and what is needed to judge the next one."""

    step: int | None = None
    value: float | None = None
    lowest_benign_nll: float | None = None
    benign_nll: float | None = None
    stale: int = 0  # checkpoints since the best one

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class TrainerState:
    """Where a run stands; with the config and the data, all that a resume needs."""

    step: int
    samples: int  # the data position: triplets consumed
    seed: int  # random state of step s on rank r is derived from (seed, s, r)
    learning_rate: float  # of the last step; the schedule itself is a function of the step
    total_steps: int
    skipped: int  # non-finite steps so far
    skipped_in_a_row: int
    best: dict[str, Any]  # see `BestSoFar`
    data_fingerprint: str
    base_fingerprint: str
    config_fingerprint: str


_Count = Annotated[int, Field(ge=0, lt=2**63)]  # what counts steps and rows anywhere else


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _SavedBest(_Strict):
    step: int | None = None
    value: float | None = None
    lowest_benign_nll: float | None = None
    benign_nll: float | None = None
    stale: int = Field(0, ge=0)


class SavedState(_Strict):
    """The file: a trainer state, the optimizer's plain values and the last metrics."""

    step: _Count
    samples: _Count
    seed: _Count
    learning_rate: float = Field(ge=0, le=10)
    total_steps: _Count
    skipped: _Count
    skipped_in_a_row: _Count
    best: _SavedBest
    data_fingerprint: str
    base_fingerprint: str
    config_fingerprint: str
    optimizer_values: dict[str, dict[str, bool | int | float | str | None]]
    metrics: dict[str, Any]  # for people; a loss may be NaN there

    def trainer_state(self) -> TrainerState:
        return TrainerState(**self.model_dump(exclude={"optimizer_values", "metrics"}))
