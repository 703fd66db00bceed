"""One tokenised triplet."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TripletTokens:
    """The token spans of one triplet (see `PromptEncoder` for what each includes)."""

    id: str
    system: list[int]
    benign: list[int]
    counterfactual: list[int]
    injection: list[int]
    benign_answer: list[int]
    injection_answer: list[int]
    witness: list[int]  # empty when the triplet has no witness

    def shared_answer(self) -> list[int]:
        """The answer to U and to U* where they are the same, else nothing."""
        return self.benign_answer if self.benign_answer == self.injection_answer else []

    def size_bound(self) -> int:
        """Nodes of the triplet's tree if only S is shared: an upper bound, cheap to compute."""
        return (
            len(self.system)
            + len(self.benign)
            + len(self.counterfactual)
            + len(self.injection)
            + 2 * len(self.benign_answer)
            + len(self.injection_answer)
        )
