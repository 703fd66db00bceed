"""One line of what `causal doctor` finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Check:
    """One line of the report; `advice` says what to do where the status is not ok."""

    group: str
    name: str
    status: Status
    found: str
    advice: str = ""
