"""The canonical triplet: its fields, its Arrow schema, and the problems a row can have.

A triplet has one system instruction S and inputs under it: benign U, counterfactual benign U' (the
same task on other data) and any number of injected U* (U with an adversarial instruction in it).
Terms on representations alone need U'. A plain row has neither U' nor U*.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, TypeVar

import pyarrow as pa

from causal_core.data.folding import folded, holds_word
from causal_core.errors import UserError
from causal_core.visible_text import shown

SPLITS = ("train", "validation", "test_seen", "test_novel")
# Attacks whose witness is part of S on purpose: they ask the model to reveal it. A payload, and the
# family that data of others calls it.
LEAKING_PAYLOAD, LEAKING_FAMILY = "leak", "prompt_leaking"
TASK_PAYLOAD = "task"  # asks for another task: its right answer is the witness

_T = TypeVar("_T")


@dataclass(frozen=True)
class Injection:
    """One injected input U* of a triplet; `None` where an optional field is absent.

    `injection_output` is the safe answer. `attack_output` is what the model answers where the
    attack has its way, and `witness` the string that shows it: it never occurs in the safe answer.
    """

    injection_input: str
    injection_output: str
    attack_family: str
    attack_output: str | None = None
    witness: str | None = None
    attack_technique: str | None = None
    position: str | None = None
    payload: str | None = None  # the kind of what is asked for: another task, a decoy, ...
    wording: str | None = None  # of the family: rows with the same one are not independent


@dataclass(frozen=True)
class Triplet:
    """One training example; `None` where an optional field is absent.

    `context` precedes every branch's input. A row has any number of `injections`.
    """

    id: str
    system_instruction: str
    benign_input: str
    benign_output: str
    benign_cf_input: str | None = None
    injections: tuple[Injection, ...] = ()
    context: str | None = None
    benign_cf_output: str | None = None
    task: str | None = None
    split: str | None = None
    has_trigger_words: bool | None = None
    source: str | None = None
    license: str | None = None

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Triplet:
        """Build from a canonical row; keys that are not fields are left out.

        Raises TypeError if a required field is missing. Rules beyond that are the reader's.
        """
        values = {name: row[name] for name in _FIELD_NAMES if name in row}
        injections = tuple(Injection(**injection) for injection in row.get("injections") or ())
        return cls(**{**values, "injections": injections})

    def to_row(self) -> dict[str, Any]:
        """The canonical row, keys in the order of `TRIPLET_SCHEMA`."""
        values = asdict(self)
        values["injections"] = list(values["injections"])
        return {name: values[name] for name in TRIPLET_SCHEMA.names}

    @property
    def only(self) -> Injection:
        """The injection of a row that has exactly one."""
        return only(self.id, self.injections)

    def attacked(self, number: int | None) -> Triplet:
        """The same row with one of its injections alone, or with none."""
        return replace(self, injections=() if number is None else (self.injections[number],))


def only(identity: str, injections: Sequence[_T]) -> _T:
    """The one element, where a row with exactly one injection is meant."""
    if len(injections) != 1:
        raise ValueError(f"triplet {identity!r} has {len(injections)} injections, not one")
    return injections[0]


_FIELD_NAMES = tuple(field.name for field in fields(Triplet))


def _texts(names: Sequence[str], required: Sequence[str]) -> list[pa.Field]:
    return [pa.field(name, pa.string(), nullable=name not in required) for name in names]


# Fields of an injection. A row may give those of its only injection beside its other fields.
INJECTION_FIELDS = (
    "injection_input",
    "injection_output",
    "attack_output",
    "witness",
    "attack_family",
    "attack_technique",
    "position",
    "payload",
    "wording",
)
# What a model can write where nobody has (`causal data targets`); "" stands for it until then.
ANSWERS = ("benign_output", "injection_output")
REQUIRED_INJECTION_FIELDS = ("injection_input", "injection_output")
UNKNOWN_FAMILY = "unknown"  # of an attack whose file names none
INJECTIONS = "injections"
INJECTION_TYPE = pa.struct(_texts(INJECTION_FIELDS, (*REQUIRED_INJECTION_FIELDS, "attack_family")))
# A file may leave the id out; the reader then makes `<file stem>:<line>`.
REQUIRED_FIELDS = ("system_instruction", "benign_input", "benign_output")
TRIPLET_SCHEMA = pa.schema(
    [
        *_texts(("id", "system_instruction", "context"), ("id", "system_instruction")),
        *_texts(
            ("benign_input", "benign_output", "benign_cf_input", "benign_cf_output"),
            REQUIRED_FIELDS,
        ),
        pa.field(INJECTIONS, pa.list_(INJECTION_TYPE), nullable=False),
        *_texts(("task", "split"), ()),
        pa.field("has_trigger_words", pa.bool_()),
        *_texts(("source", "license"), ()),
    ]
)

# Other spellings of each field. The first column of names is the original research code's.
ALIASES: dict[str, tuple[str, ...]] = {
    "system_instruction": ("system_prompt",),
    "benign_input": ("user_input_benign_1", "user_input_benign"),
    "benign_output": (
        "expected_output_1",
        "expected_output_benign_1",
        "expected_output",
        "benign_answer",
        "benign_expected_output",
    ),
    "benign_cf_input": (
        "user_input_benign_2",
        "counterfactual_input",
        "benign_counterfactual_input",
    ),
    "benign_cf_output": (
        "expected_output_2",
        "expected_output_benign_2",
        "counterfactual_output",
        "counterfactual_answer",
        "benign_cf_answer",
    ),
    "injection_input": ("user_input_injection", "injected_input"),
    "injection_output": (
        "expected_output_injection",
        "injected_output",
        "injection_answer",
        "safe_output",
        "safe_answer",
    ),
    "witness": ("injection_target",),
    "attack_family": ("attack_type",),
    "task": ("task_category",),
}
SPLIT_ALIASES = {
    "val": "validation", "valid": "validation", "dev": "validation", "test": "test_seen",
}  # fmt: skip
# Every accepted key and the canonical field it stands for.
CANONICAL_NAME: dict[str, str] = {
    **{name: name for name in (*TRIPLET_SCHEMA.names, *INJECTION_FIELDS)},
    **{alias: name for name, aliases in ALIASES.items() for alias in aliases},
}


@dataclass(frozen=True)
class RowProblem:
    """One thing wrong with one field of one row.

    `line` counts from 1: the line of a text file, the row of a Parquet file; 0 is the whole file.
    `field` is empty where the row as a whole is meant.
    """

    file: str
    line: int
    field: str
    reason: str

    def __str__(self) -> str:
        place = shown(self.file) if self.line == 0 else f"{shown(self.file)}:{self.line}"
        return ": ".join(part for part in (place, self.field, self.reason) if part)


_PLACES_SHOWN = 3


def summarised(problems: Sequence[RowProblem]) -> list[str]:
    """A line for every kind of problem, in the order of the first, with its first places."""
    places: dict[tuple[str, str, str], list[RowProblem]] = {}
    for problem in problems:
        places.setdefault((problem.file, problem.field, problem.reason), []).append(problem)
    lines = []
    for first, *others in places.values():
        text = str(first)
        if others:
            more = ", ".join(str(other.line) for other in others[: _PLACES_SHOWN - 1])
            rest = len(others) - _PLACES_SHOWN + 1
            text += f" (in {len(others) + 1:,} rows: {first.line}, {more}"
            text += ", ...)" if rest > 0 else ")"
        lines.append(text)
    return lines


class DataError(UserError):
    """Training data that cannot be used, with every problem found in one pass.

    `problems` holds the first of them (`count` is the number of all); the message prints 20.
    """

    SHOWN = 20

    def __init__(self, problems: Sequence[RowProblem], count: int | None = None) -> None:
        self.problems = tuple(problems)
        self.count = len(self.problems) if count is None else count
        super().__init__(self.problems, self.count)

    @classmethod
    def in_file(cls, file: object, reason: str) -> DataError:
        """An error about a file as a whole."""
        return cls([RowProblem(str(file), 0, "", reason)])

    def __str__(self) -> str:
        lines = summarised(self.problems)[: self.SHOWN]
        if self.count > len(lines):
            lines.append(f"... {self.count} problems in all")
        return "\n".join(lines)


def contains_witness(text: str, witness: str) -> bool:
    """Whether `witness` occurs in `text` as whole words, as a reader sees it (see `folded`).

    Whole words, because a witness such as `1` or `no` is part of countless harmless texts.
    """
    return holds_word(folded(text), folded(witness))
