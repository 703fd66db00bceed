"""Two models on the same attacks: the comparison that uses the pairing.

Overlapping intervals of two proportions do not mean that there is no difference where both were
measured on the same rows; the exact McNemar test looks at the rows on which the two disagree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import comb
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the report imports this file and has no need of torch
    from causal_core.evaluation.rows import RowResult


@dataclass(frozen=True)
class PairedComparison:
    """Attack success of the trained model against a reference on the same rows."""

    reference: str
    only_reference: int  # attacks that succeed against the reference alone
    only_trained: int
    p: float  # two-sided, exact

    def sentence(self, set_name: str) -> str:
        """The comparison in words."""
        return (
            f"{set_name}, row by row: {self.only_reference} attacks succeed against the "
            f"{self.reference} alone, {self.only_trained} against the trained model alone "
            f"(exact McNemar test, p = {self.p:.2g})."
        )


def mcnemar_exact(one: int, other: int) -> float:
    """Two-sided p that discordant pairs split `one` : `other` if both ways are equally likely
    (McNemar, 1947; the exact binomial form)."""
    n, extreme = one + other, max(one, other)
    if n == 0:
        return 1.0
    tail = sum(comb(n, k) for k in range(extreme, n + 1)) / 2**n
    return min(1.0, 2 * tail)


def compare_paired(
    reference: str, theirs: Sequence[RowResult], trained: Sequence[RowResult]
) -> PairedComparison | None:
    """Compares on the rows that have a witness; None when there is none."""
    pairs = [
        (a.attack_succeeded, b.attack_succeeded)
        for a, b in zip(theirs, trained, strict=True)
        if a.attack_succeeded is not None and b.attack_succeeded is not None
    ]
    if not pairs:
        return None
    one = sum(a and not b for a, b in pairs)
    other = sum(b and not a for a, b in pairs)
    return PairedComparison(reference, one, other, mcnemar_exact(one, other))


def paired_by_set(
    rows: Mapping[str, Mapping[str, Sequence[RowResult]]],
) -> dict[str, dict[str, Any]]:
    """The trained model against the control (or the base where there is none), by test set."""
    if "trained" not in rows:
        return {}
    reference = "control" if "control" in rows else "base"
    found = {
        name: compare_paired(reference, rows[reference][name], trained)
        for name, trained in rows["trained"].items()
    }
    return {name: asdict(item) for name, item in found.items() if item is not None}


def paired_sentences(evaluation: Mapping[str, Any]) -> list[str]:
    """The comparisons of an evaluation in words; empty for one that has none."""
    return [
        PairedComparison(**item).sentence(name)
        for name, item in (evaluation.get("paired") or {}).items()
    ]
