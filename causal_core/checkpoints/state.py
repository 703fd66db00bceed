"""Where a run stands, as a checkpoint's trainer_state.json holds it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

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


def _impossible(reason: str) -> PydanticCustomError:
    return PydanticCustomError("impossible", "{reason}", {"reason": reason})


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _SavedBest(_Strict):
    step: _Count | None = None
    value: float | None = None
    lowest_benign_nll: float | None = None
    benign_nll: float | None = None
    stale: _Count = 0

    @model_validator(mode="after")
    def _is_of_one_checkpoint(self) -> _SavedBest:
        """`Best.update` sets all of it at once."""
        nll, lowest = self.benign_nll, self.lowest_benign_nll
        missing = [value is None for value in (self.step, self.value, nll, lowest)]
        if any(missing) and not all(missing):
            raise _impossible("best is of a checkpoint in part only")
        if nll is not None and lowest is not None and nll < lowest:
            raise _impossible("best has a lower benign NLL than the lowest")
        return self


class SavedState(_Strict):
    """The file: a trainer state, the optimizer's plain values and the last metrics.

    Its counts are those of some run: what no run comes to is refused as of the wrong shape is.
    """

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

    @model_validator(mode="after")
    def _counts_agree(self) -> SavedState:
        best = self.best.step or 0
        for holds, impossible in (
            (self.step <= self.total_steps, f"{self.step} of {self.total_steps} steps are done"),
            (self.samples >= self.step, f"{self.step} steps took {self.samples} rows"),
            (self.skipped <= self.step, f"{self.skipped} of {self.step} steps were skipped"),
            (
                self.skipped_in_a_row <= self.skipped,
                f"{self.skipped_in_a_row} of {self.skipped} skipped steps were in a row",
            ),
            (
                self.best.step is None or 0 < best <= self.step,
                f"step {best} is the best of {self.step} steps",
            ),
            (
                self.best.stale <= self.step - best,
                f"{self.best.stale} checkpoints were judged from step {best} to step {self.step}",
            ),
        ):
            if not holds:
                raise _impossible(f"it says that {impossible}")
        return self

    def applied(self) -> int:
        """Steps that moved the weights."""
        return self.step - self.skipped

    def trainer_state(self) -> TrainerState:
        return TrainerState(**self.model_dump(exclude={"optimizer_values", "metrics"}))
