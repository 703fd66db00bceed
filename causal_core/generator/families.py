"""The attack families: how an instruction is wrapped, one YAML file each in `families/`.

A file says what its wordings do (`technique`), whether training sees the family (`use`: `seen` or
`novel`), and the wordings, whose slots are the payload (`{payload}`), what the task calls its
answer (`{noun}`), a part of `parts.yaml` (`{opening}`), or words to disguise (`{leet:ignore it}`).
To add a family is to add a file. The texts are inert data: slots are filled by name, nothing is
ever evaluated, and what is filled in is not looked at again.
"""

from __future__ import annotations

import base64
import codecs
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from causal_core.errors import UserError
from causal_core.generator.vocabulary import TEST_NOVEL, Wordings
from causal_core.yaml_file import read_yaml

FOLDER = Path(__file__).parent / "families"
_PARTS = Path(__file__).parent / "parts.yaml"
MIN_WORDINGS = 25
SEEN, NOVEL = "seen", "novel"
_HELD_BACK = {"validation": 3, "test": 6}  # wordings of a seen family that training never has

_SLOT = re.compile(r"\{(\w+)(?::([^{}]*))?\}")
_LEET = str.maketrans("aeiost", "431057")
DISGUISES: dict[str, Callable[[str], str]] = {
    "leet": lambda text: text.translate(_LEET),
    "spaced": lambda text: " ".join(text),
    "dashed": lambda text: "-".join(text.replace(" ", "")),
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "rot13": lambda text: codecs.encode(text, "rot13"),
    "reversed": lambda text: text[::-1],
    "upper": str.upper,
}


@dataclass(frozen=True)
class Family:
    """One attack family."""

    name: str
    technique: str  # what a wording does, for the report
    use: str  # `seen`: training has it, too; `novel`: only `test_novel`
    wordings: Wordings

    def wording(self, split: str, rng: Random) -> tuple[str, str]:
        """One of a split's wordings, after its identity: `naive/7`."""
        given = self.wordings.of(split)
        number = rng.randrange(len(given))
        everything = (*self.wordings.train, *self.wordings.validation, *self.wordings.test)
        return f"{self.name}/{everything.index(given[number])}", given[number]


def read_family(path: Path) -> Family:
    """A family from its file.

    Raises:
        UserError: a field that is missing, unknown or of the wrong kind, too few wordings, or a
            slot that nothing fills.
    """
    tree = read_yaml(path)
    fields = {"technique": str, "use": str, "wordings": list}
    if not isinstance(tree, dict) or set(tree) != set(fields):
        found = ", ".join(map(str, tree)) if isinstance(tree, dict) else type(tree).__name__
        raise UserError(f"{path}: a family has the fields {', '.join(fields)}; found: {found}")
    for name, kind in fields.items():
        if not isinstance(tree[name], kind):
            raise UserError(f"{path}: {name} is no {kind.__name__}")
    if tree["use"] not in (SEEN, NOVEL):
        raise UserError(f"{path}: use is {tree['use']!r}; it is {SEEN} or {NOVEL}")
    texts = tree["wordings"]
    if not all(isinstance(text, str) for text in texts) or len(set(texts)) != len(texts):
        raise UserError(f"{path}: wordings are texts, no two of them the same")
    if len(texts) < MIN_WORDINGS:
        raise UserError(f"{path}: {len(texts)} wordings; a family has at least {MIN_WORDINGS}")
    for text in texts:
        _check_slots(path, text)
    return Family(path.stem, tree["technique"], tree["use"], _cut(tuple(texts), tree["use"]))


def _check_slots(path: Path, text: str) -> None:
    if text.count("{payload}") != 1:
        raise UserError(f"{path}: {text!r} has not exactly one {{payload}}")
    for name, inner in _SLOT.findall(text):
        known = name in DISGUISES if inner else name in {"payload", "noun", *parts()}
        if not known:
            raise UserError(f"{path}: nothing fills the slot {{{name}}} of {text!r}")


def _cut(texts: tuple[str, ...], use: str) -> Wordings:
    """The wordings of training, validation and test; a novel family's are all for test."""
    if use == NOVEL:
        return Wordings((), (), texts)
    test, validation = _HELD_BACK["test"], _HELD_BACK["validation"]
    first, second = len(texts) - test - validation, len(texts) - test
    return Wordings(texts[:first], texts[first:second], texts[second:])


@cache
def families() -> Mapping[str, Family]:
    """All families by name, in the order of their names."""
    return {family.name: family for family in map(read_family, sorted(FOLDER.glob("*.yaml")))}


def text_files() -> tuple[Path, ...]:
    """The files that wordings come from."""
    return (_PARTS, *sorted(FOLDER.glob("*.yaml")))


def families_of(split: str) -> tuple[Family, ...]:
    """The families that may occur in a split."""
    use = NOVEL if split == TEST_NOVEL else SEEN
    return tuple(family for family in families().values() if family.use == use)


@cache
def parts() -> Mapping[str, tuple[str, ...]]:
    """What wordings are put together from, by slot."""
    return {name: tuple(texts) for name, texts in read_yaml(_PARTS).items()}


def filled(text: str, values: Mapping[str, str], rng: Random) -> str:
    """A wording with its slots filled: by `values`, a part drawn for it, or its own disguise.

    One pass over the wording alone: braces in what is filled in stay as they are.
    """

    def fill(slot: re.Match[str]) -> str:
        name, inner = slot.group(1), slot.group(2)
        if inner is not None:
            return DISGUISES[name](inner)
        if name in values:
            return values[name]
        choices: Any = parts().get(name)
        return slot.group(0) if choices is None else rng.choice(choices)

    return _SLOT.sub(fill, text)
