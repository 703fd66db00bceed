"""The linter: what its parts find in the splits of a data set, with counts and examples.

Nothing here refuses a row: each finding says what a model could learn instead of what is meant.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa

from causal_core.data.folding import folded
from causal_core.data.leaks import injected_text
from causal_core.data.lint.duplicates import near_duplicates
from causal_core.data.lint.sample import Row, attacks, sampled, texts
from causal_core.data.lint.separability import by_length, by_words
from causal_core.data.lint.suspicious import secrets, unseen

# From where on a measure is worth a word. Attacked inputs hold more text and other words than clean
# ones, so that the areas of an honest set are above chance too.
_LENGTH_AREA, _WORDS_AREA = 0.8, 0.95
_TOP_SHARE = {"position": 0.8, "wording": 0.2, "attack_family": 0.8}
_NEAR_WITHIN = 0.05  # of a split's inputs
_FEWEST = 20  # injections or rows of which a share says anything
_EXAMPLES = 3
_EXAMPLE_CHARACTERS = 120


@dataclass(frozen=True)
class LintFinding:
    """One thing about one split (or two): how often, of how many, with a few of them."""

    kind: str
    splits: tuple[str, ...]
    text: str  # a sentence for a reader
    count: int
    of: int
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class LintReport:
    """Findings, and the areas of the two classifiers by split where they could be measured."""

    findings: tuple[LintFinding, ...]
    length_auroc: Mapping[str, float]
    words_auroc: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return asdict(self)


def lint(splits: Mapping[str, pa.Table]) -> LintReport:
    """Looks at every split and every pair of them, at a bounded number of rows (`sample.py`)."""
    rows = {name: sampled(table) for name, table in splits.items()}
    areas = {name: area for name, found in rows.items() if (area := _areas(found)) is not None}
    length, words = ({name: area[place] for name, area in areas.items()} for place in (0, 1))
    findings = [
        *_separable("length", length, _LENGTH_AREA, "their length alone", rows),
        *_separable("words", words, _WORDS_AREA, "their words alone, in any order", rows),
    ]
    for name, found in rows.items():
        for check in _CHECKS:
            findings += check(name, found)
    findings += _near_across(rows)
    return LintReport(tuple(findings), length, words)


def _areas(rows: list[Row]) -> tuple[float, float] | None:
    """By length and by words; None where there are too few attacked or clean inputs."""
    inputs: list[tuple[str, bool, int]] = []
    for group, row in enumerate(rows):
        if row["injections"]:
            inputs.append((row["benign_input"], False, group))
            inputs += ((i["injection_input"], True, group) for i in row["injections"][:4])
    if sum(not attacked for _, attacked, _ in inputs) < _FEWEST:
        return None
    found, attacked, groups = zip(*inputs, strict=True)
    attacked_D, groups_D = np.array(attacked), np.array(groups)
    return by_length(found, attacked_D), by_words(found, attacked_D, groups_D)


def _separable(
    kind: str,
    areas: Mapping[str, float],
    limit: float,
    what: str,
    rows: Mapping[str, list[Row]],
) -> Iterator[LintFinding]:
    high = {name: area for name, area in areas.items() if area >= limit}
    if high:
        found = ", ".join(f"{area:.2f} in {name}" for name, area in high.items())
        text = (
            f"attacked inputs are told from clean ones by {what}: AUROC {found} (0.5 is chance); "
            "a model can learn that and nothing about instructions"
        )
        count = sum(bool(row["injections"]) for name in high for row in rows[name])
        of = sum(len(rows[name]) for name in high)
        yield LintFinding(f"{kind}_tells", tuple(high), text, count, of)


def _near_within(name: str, rows: list[Row]) -> Iterator[LintFinding]:
    inputs = [row["benign_input"] for row in rows]
    pairs = list(near_duplicates(inputs))
    if len(rows) >= _FEWEST and len(pairs) >= _NEAR_WITHIN * len(rows):
        text = "benign inputs are nearly the same as another one of the split"
        examples = (inputs[place] for place, _ in pairs)
        yield _finding("near_duplicates", (name,), text, len(pairs), len(rows), examples)


def _near_across(rows: Mapping[str, list[Row]]) -> Iterator[LintFinding]:
    for one, two in combinations(rows, 2):
        first, second = ([row["benign_input"] for row in rows[name]] for name in (one, two))
        pairs = list(near_duplicates([*first, *second], earlier=len(first)))
        if pairs:
            text = f"benign inputs of {two} are nearly the same as one of {one}"
            examples = (second[place - len(first)] for place, _ in pairs)
            yield _finding("near_leak", (one, two), text, len(pairs), len(second), examples)


def _dominating(name: str, rows: list[Row]) -> Iterator[LintFinding]:
    """One position, family or wording that most attacks have."""
    for field, limit in _TOP_SHARE.items():
        values = [value for row, i in attacks(rows) if (value := _label(field, row, i))]
        if len(values) < _FEWEST:
            continue
        top, count = Counter(values).most_common(1)[0]
        if count >= limit * len(values):
            what = field.replace("_", " ")
            text = f"attacks have one and the same {what}: a model can learn that one alone"
            yield _finding(f"one_{field}", (name,), text, count, len(values), [top])


def _label(field: str, row: Row, injection: Row) -> str | None:
    if field != "wording" or injection["wording"]:
        value = injection[field]
        return None if value is None else str(value)
    # Without a name of it: what was added to U, but for numbers and the witness.
    added = folded(injected_text(row["benign_input"], injection["injection_input"]))
    if injection["witness"]:
        added = added.replace(folded(injection["witness"]), "...")
    return re.sub(r"\d+", "#", added) or None


def _other_answers(name: str, rows: list[Row]) -> Iterator[LintFinding]:
    pairs = [(row["benign_output"], i["injection_output"]) for row, i in attacks(rows)]
    other = [safe for benign, safe in pairs if benign.strip() != safe.strip()]
    if other:
        text = (
            "safe answers are not the benign answer: the term `invariance` leaves them out, and a "
            "model learns to answer otherwise under attack"
        )
        yield _finding("other_safe_answers", (name,), text, len(other), len(pairs), other)


def _suspicious(
    kind: str, says: str, find: Callable[[str], Iterable[tuple[str, str]]]
) -> Callable[[str, list[Row]], Iterator[LintFinding]]:
    def check(name: str, rows: list[Row]) -> Iterator[LintFinding]:
        found: dict[str, dict[str, None]] = {}
        counts: Counter[str] = Counter()
        for row in rows:
            kinds = {}
            for field, text in texts(row):
                for what, example in find(text):
                    kinds[what] = f"{field} of {row['id']}: {example}"
            counts.update(kinds.keys())  # not their texts
            for what, example in kinds.items():
                found.setdefault(what, {})[example] = None
                if len(found[what]) > _EXAMPLES:
                    found[what].popitem()
        for what, count in counts.items():
            yield _finding(kind, (name,), says.format(what), count, len(rows), found[what])

    return check


def _finding(
    kind: str, splits: tuple[str, ...], text: str, count: int, of: int, examples: Iterable[str]
) -> LintFinding:
    cut = tuple(dict.fromkeys(example[:_EXAMPLE_CHARACTERS] for example in examples))[:_EXAMPLES]
    return LintFinding(kind, splits, text, count, of, cut)


_CHECKS: tuple[Callable[[str, list[Row]], Iterator[LintFinding]], ...] = (
    _near_within,
    _dominating,
    _other_answers,
    _suspicious("secrets", "rows hold what looks like {}: a model may learn it by heart", secrets),
    _suspicious("unseen", "rows hold {}: they are tokens that a reader of the data misses", unseen),
)
