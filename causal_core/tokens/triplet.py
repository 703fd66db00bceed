"""One tokenised triplet."""

from __future__ import annotations

from dataclasses import dataclass, replace

from causal_core.data.schema import only


@dataclass(frozen=True)
class InjectionTokens:
    """The token spans of one injected input."""

    prompt: list[int]  # U*, after S
    answer: list[int]  # the safe answer; empty when there is no reference
    witness: list[int]  # empty when there is none
    attack_answer: list[int]  # what the attack wants; empty when it is not known


@dataclass(frozen=True)
class TripletTokens:
    """The token spans of one triplet (see `PromptEncoder` for what each includes)."""

    id: str
    system: list[int]
    benign: list[int]
    counterfactual: list[int]  # empty when there is none
    benign_answer: list[int]  # likewise
    injections: tuple[InjectionTokens, ...]

    @property
    def only(self) -> InjectionTokens:
        """The injection of a row that has exactly one."""
        return only(self.id, self.injections)

    def attacked(self, number: int | None) -> TripletTokens:
        """The same row with one of its injections alone, or with none."""
        return replace(self, injections=() if number is None else (self.injections[number],))

    def shared_answer(self, injection: InjectionTokens) -> list[int]:
        """The answer to U and to U* where they are the same, else nothing."""
        return self.benign_answer if self.benign_answer == injection.answer else []

    def size_bound(self) -> int:
        """Nodes of the triplet's tree if only S is shared: an upper bound, cheap to compute."""
        return (
            len(self.system)
            + len(self.benign)
            + len(self.counterfactual)
            + len(self.benign_answer)
            + sum(self._bound_of(injection) for injection in self.injections)
        )

    def _bound_of(self, injection: InjectionTokens) -> int:
        return (
            len(injection.prompt)
            + len(self.benign_answer)
            + len(injection.answer)
            + len(injection.attack_answer)
        )
