"""Proves that splits share nothing that would let a model pass by memory.

What is compared: system prompts, their single sentences (task wordings), benign inputs (U and U'
pooled), injected instructions, witnesses, and the attack families of `test_novel` against all
other splits. `test_seen` and `test_novel` may share system prompts and their wordings.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from itertools import combinations
from typing import Any

import pyarrow as pa

from causal_core.data.folding import folded
from causal_core.data.schema import INJECTIONS, TASK_PAYLOAD, Triplet

NOVEL_SPLIT = "test_novel"
# A sentence of fewer words ("Be brief.") is no wording of a task that could be learnt by heart.
MIN_WORDING_WORDS = 6
_EXAMPLES = 3
_MAY_SHARE_PROMPTS = {frozenset(("test_seen", "test_novel"))}


class LeakKind(StrEnum):
    """What two splits can have in common."""

    SYSTEM_PROMPT = "system_prompt"
    TASK_WORDING = "task_wording"
    BENIGN_INPUT = "benign_input"
    INJECTION_WORDING = "injection_wording"
    WITNESS = "witness"
    ATTACK_FAMILY = "attack_family"


@dataclass(frozen=True)
class LeakFinding:
    """`count` distinct values that two splits share, with a few of them."""

    kind: LeakKind
    split_a: str
    split_b: str
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class LeakReport:
    """What the check compared and what it found.

    `absent` are kinds that no two splits have data for: nothing is claimed about them.
    """

    splits: tuple[str, ...]
    checked: tuple[LeakKind, ...]
    absent: tuple[LeakKind, ...]
    findings: tuple[LeakFinding, ...]

    @property
    def ok(self) -> bool:
        """True if nothing that was compared is shared."""
        return not self.findings

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return {"ok": self.ok, **asdict(self)}


_Fields = Mapping[str, Any]
_COLUMNS = (
    "system_instruction",
    "context",
    "benign_input",
    "benign_cf_input",
    INJECTIONS,
)


def check_leaks(splits: Mapping[str, pa.Table | Sequence[Triplet]]) -> LeakReport:
    """Compare every pair of splits.

    Args:
        splits: split name -> its rows, as a canonical table or as triplets. Columns that a table
            does not have are not compared.
    """
    names = tuple(splits)
    # Values are kept as hashes, and looked up again only where two splits meet, so that a million
    # rows do not stay in memory twice.
    seen: dict[LeakKind, dict[str, set[int]]] = {
        kind: {name: set() for name in names} for kind in LeakKind
    }
    for name in names:
        for row in _rows(splits[name]):
            for kind, values in _VALUES.items():
                seen[kind][name].update(hash(value) for value in values(row))
    findings: list[LeakFinding] = []
    checked: list[LeakKind] = []
    for kind, by_split in seen.items():
        pairs = [
            (a, b)
            for a, b in combinations(names, 2)
            if by_split[a] and by_split[b] and _must_differ(kind, a, b)
        ]
        if pairs:
            checked.append(kind)
        for a, b in pairs:
            shared = by_split[a] & by_split[b]
            if shared:
                examples = _examples(_VALUES[kind], shared, splits[a])
                findings.append(LeakFinding(kind, a, b, len(shared), examples))
    absent = tuple(kind for kind in LeakKind if kind not in checked)
    return LeakReport(names, tuple(checked), absent, tuple(findings))


def injected_text(benign_input: str, injection_input: str) -> str:
    """What was added to U to make U*: the words between their common beginning and common end."""
    before, after = benign_input.split(), injection_input.split()
    limit = min(len(before), len(after))
    head = 0
    while head < limit and before[head] == after[head]:
        head += 1
    tail = 0
    while tail < limit - head and before[-1 - tail] == after[-1 - tail]:
        tail += 1
    return " ".join(after[head : len(after) - tail])


def input_key(context: str | None, text: str) -> str:
    """What makes two inputs the same one."""
    # The same question about another passage is another input.
    return folded(f"{context or ''}\n{text}")


def prompt_keys(system: str) -> list[str]:
    """What two system prompts may not share across splits: the whole, and its long sentences."""
    row: _Fields = {"system_instruction": system}
    return [*_system_prompts(row), *_task_wordings(row)]


def wording_of(benign_input: str, injection_input: str, witness: str | None) -> str:
    """The wording of an attack: what was added to U, without its filling."""
    return _masked(injected_text(benign_input, injection_input), [{"witness": witness}])


def _must_differ(kind: LeakKind, a: str, b: str) -> bool:
    if kind is LeakKind.ATTACK_FAMILY:
        return NOVEL_SPLIT in (a, b)
    if kind in (LeakKind.SYSTEM_PROMPT, LeakKind.TASK_WORDING):
        return frozenset((a, b)) not in _MAY_SHARE_PROMPTS
    return True


def _rows(data: pa.Table | Sequence[Triplet]) -> Iterator[_Fields]:
    if not isinstance(data, pa.Table):
        for triplet in data:
            yield {**vars(triplet), INJECTIONS: [vars(found) for found in triplet.injections]}
        return
    present = [name for name in _COLUMNS if name in data.column_names]
    for batch in data.select(present).to_batches(max_chunksize=4096):
        yield from batch.to_pylist()


def _examples(
    values: Callable[[_Fields], Iterable[str]],
    shared: set[int],
    data: pa.Table | Sequence[Triplet],
) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for row in _rows(data):
        for value in values(row):
            if hash(value) in shared:
                found.setdefault(value)
        if len(found) >= _EXAMPLES:
            break
    return tuple(found)[:_EXAMPLES]


def _injections(row: _Fields) -> Sequence[_Fields]:
    return row.get(INJECTIONS) or ()


def _masked(text: str, injections: Sequence[_Fields]) -> str:
    """Folded text with the witnesses and all digits masked: the wording, not its filling."""
    text = folded(text)
    for injection in injections:
        if injection.get("witness"):
            text = text.replace(folded(injection["witness"]), "<witness>")
    return re.sub(r"\d+", "#", text)


def _system_prompts(row: _Fields) -> Iterator[str]:
    if row.get("system_instruction"):
        yield _masked(row["system_instruction"], _injections(row))


def _task_wordings(row: _Fields) -> Iterator[str]:
    for prompt in _system_prompts(row):
        for sentence in re.split(r"(?<=[.!?])\s+", prompt):
            if len(sentence.split()) >= MIN_WORDING_WORDS:
                yield sentence


def _benign_inputs(row: _Fields) -> Iterator[str]:
    for field in ("benign_input", "benign_cf_input"):
        if row.get(field):
            yield input_key(row.get("context"), row[field])


def _injection_wordings(row: _Fields) -> Iterator[str]:
    for injection in _injections(row):
        text = row.get("benign_input") or ""
        wording = wording_of(text, injection["injection_input"], injection.get("witness"))
        if wording:
            yield wording


def _witnesses(row: _Fields) -> Iterator[str]:
    for injection in _injections(row):
        # Where another task is asked for, its answer is the witness, and labels are few: `yes`.
        if injection.get("witness") and injection.get("payload") != TASK_PAYLOAD:
            yield folded(injection["witness"])


def _families(row: _Fields) -> Iterator[str]:
    for injection in _injections(row):
        yield injection["attack_family"]


_VALUES: dict[LeakKind, Callable[[_Fields], Iterator[str]]] = {
    LeakKind.SYSTEM_PROMPT: _system_prompts,
    LeakKind.TASK_WORDING: _task_wordings,
    LeakKind.BENIGN_INPUT: _benign_inputs,
    LeakKind.INJECTION_WORDING: _injection_wordings,
    LeakKind.WITNESS: _witnesses,
    LeakKind.ATTACK_FAMILY: _families,
}
