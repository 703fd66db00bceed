"""Two models on the same attacks: the comparison that uses the pairing.

Overlapping intervals of two proportions do not mean that there is no difference where both were
measured on the same rows; the exact McNemar test looks at the rows on which the two disagree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import comb
from typing import TYPE_CHECKING, Any

from causal_core.evaluation.metrics import TRAINED, reference_model
from causal_core.evaluation.statistics import Comparison, Estimate, compare

if TYPE_CHECKING:  # the report imports this file and has no need of torch
    from causal_core.evaluation.rows import RowResult

_SIGNIFICANT = 0.05  # two-sided


@dataclass(frozen=True)
class RowByRow:
    """Attack success of the trained model against a reference on the same rows."""

    reference: str
    only_reference: int  # attacks that succeed against the reference alone
    only_trained: int
    p: float  # two-sided, exact

    def sentence(self) -> str:
        """The comparison in words."""
        return (
            f"Row by row, attacks that succeed against the {self.reference} alone: "
            f"{self.only_reference}, against the trained model alone: {self.only_trained} "
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


def compare_rows(
    reference: str, theirs: Sequence[RowResult], trained: Sequence[RowResult]
) -> RowByRow | None:
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
    return RowByRow(reference, one, other, mcnemar_exact(one, other))


def compare_sets(
    rows: Mapping[str, Mapping[str, Sequence[RowResult]]],
) -> dict[str, dict[str, Any]]:
    """The trained model against the reference, by test set: `evaluation.paired` of summary.json."""
    reference = reference_model(rows)
    if TRAINED not in rows or reference is None:
        return {}
    found = {
        name: compare_rows(reference, rows[reference][name], trained)
        for name, trained in rows[TRAINED].items()
    }
    return {name: asdict(item) for name, item in found.items() if item is not None}


def compare_attacks(own: Estimate, baseline: Estimate, rows: RowByRow | None) -> Comparison:
    """`compare` for attack success, where the row-by-row test may see what intervals cannot."""
    outcome = compare(own, baseline)
    if outcome == "not distinguishable" and rows is not None and rows.p < _SIGNIFICANT:
        return "lower" if rows.only_reference > rows.only_trained else "higher"
    return outcome
