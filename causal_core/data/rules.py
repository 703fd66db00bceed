"""The rules one raw row must meet, and its way to canonical form. No files here, only rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from causal_core.data.folding import folded
from causal_core.data.schema import (
    CANONICAL_NAME,
    LEAKING_FAMILY,
    REQUIRED_FIELDS,
    SPLIT_ALIASES,
    SPLITS,
    TRIPLET_SCHEMA,
    contains_witness,
)
from causal_core.visible_text import quoted

Finding = tuple[str, str]  # field, reason


class CheckedRow(NamedTuple):
    """A row in canonical form with what is wrong (`errors`) or doubtful (`warnings`) about it.

    `row` is complete only if there are no errors. `unknown` are keys that no field claims.
    """

    row: dict[str, Any]
    errors: list[Finding]
    warnings: list[Finding]
    unknown: list[str]


def split_name(value: Any) -> str | None:
    """The canonical split a value names, or None if it names none."""
    if not isinstance(value, str):
        return None
    name = SPLIT_ALIASES.get(value, value)
    return name if name in SPLITS else None


def check_row(raw: Mapping[str, Any], default_id: str) -> CheckedRow:
    """Bring a raw row to canonical form and test every rule that needs no other row.

    `default_id` is the id of a row without one. All broken rules are reported, not the first.
    """
    row: dict[str, Any] = dict.fromkeys(TRIPLET_SCHEMA.names)
    errors: list[Finding] = []
    unknown = _gather(raw, row, errors)
    if row["id"] is None:
        row["id"] = default_id
    elif isinstance(row["id"], int) and not isinstance(row["id"], bool):
        row["id"] = str(row["id"])  # numbered rows are common and lose nothing as text
    broken = {field for field, _ in errors}
    for field in TRIPLET_SCHEMA.names:
        if field not in broken:
            _check_field(field, row, errors)
    broken = {field for field, _ in errors}
    _check_values(row, broken, errors)
    warnings = _witness_warnings(row) if not errors else []
    return CheckedRow(row, errors, warnings, unknown)


def _gather(raw: Mapping[str, Any], row: dict[str, Any], errors: list[Finding]) -> list[str]:
    """Copy the values of all known spellings into `row`; returns the keys that are none."""
    unknown: list[str] = []
    taken_from: dict[str, str] = {}
    for key, value in raw.items():
        field = CANONICAL_NAME.get(key)
        if field is None:
            unknown.append(key)
        elif value is None:
            continue
        elif field not in taken_from:
            taken_from[field] = key
            row[field] = value
        elif row[field] != value:
            reason = f"{taken_from[field]} and {key} both name it and disagree"
            errors.append((field, reason))
    return unknown


def _check_field(field: str, row: dict[str, Any], errors: list[Finding]) -> None:
    """Type, presence and characters of one field. Empty optional text becomes None."""
    value = row[field]
    required = field in REQUIRED_FIELDS or field == "id"
    if value is None:
        if required:
            errors.append((field, "missing"))
        return
    if field == "has_trigger_words":
        if not isinstance(value, bool):
            errors.append((field, f"expected true or false, found {_kind(value)}"))
        return
    if not isinstance(value, str):
        errors.append((field, f"expected text, found {_kind(value)}"))
        return
    if not value.strip():
        if required:
            errors.append((field, "empty" if not value else "only white space"))
        row[field] = None
        return
    if "\x00" in value:
        errors.append((field, f"NUL character at position {value.index(chr(0)) + 1}"))
    try:
        value.encode()
    except UnicodeEncodeError as problem:
        errors.append((field, f"half of a surrogate pair at position {problem.start + 1}"))


def _kind(value: Any) -> str:
    """What a value is, in words; containers are not printed, they may be deep and huge."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return f"{type(value).__name__} {quoted(value)}"


def _check_values(row: dict[str, Any], broken: set[str], errors: list[Finding]) -> None:
    """Rules about what the fields say; fields in `broken` are not looked at again."""
    if row["split"] is not None and "split" not in broken:
        name = split_name(row["split"])
        if name is None:
            reason = f"{quoted(row['split'])} is none of {', '.join(SPLITS)}"
            errors.append(("split", reason))
        row["split"] = name
    if "benign_input" not in broken:
        for field, why in (
            ("benign_cf_input", "the same as benign_input, so it is no counterfactual"),
            ("injection_input", "the same as benign_input, so nothing is injected"),
        ):
            if field not in broken and row[field].strip() == row["benign_input"].strip():
                errors.append((field, why))
    if row["witness"] is not None and "witness" not in broken and not folded(row["witness"]):
        errors.append(("witness", "only characters that nobody sees: no answer can show it"))
    judged = row["witness"] is not None and not broken & {"witness", "injection_output"}
    if judged and contains_witness(row["injection_output"], row["witness"]):
        found = quoted(row["witness"])
        errors.append(("witness", f"{found} is in the safe answer, so success cannot show"))


def _witness_warnings(row: dict[str, Any]) -> list[Finding]:
    """A witness that the clean prompt holds can be produced without any attack."""
    witness = row["witness"]
    if witness is None:
        return []
    places = ["benign_input", "context"]
    if row["attack_family"] != LEAKING_FAMILY:
        places.append("system_instruction")
    return [
        ("witness", f"{quoted(witness)} is already in {place}")
        for place in places
        if row[place] is not None and contains_witness(row[place], witness)
    ]
