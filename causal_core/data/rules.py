"""The rules one raw row must meet, and its way to canonical form. No files here, only rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from causal_core.data.folding import folded
from causal_core.data.schema import (
    ANSWERS,
    CANONICAL_NAME,
    INJECTION_FIELDS,
    INJECTIONS,
    LEAKING_FAMILY,
    LEAKING_PAYLOAD,
    REQUIRED_FIELDS,
    REQUIRED_INJECTION_FIELDS,
    SPLIT_ALIASES,
    SPLITS,
    TRIPLET_SCHEMA,
    UNKNOWN_FAMILY,
    contains_witness,
)
from causal_core.visible_text import quoted

Finding = tuple[str, str]  # field, reason
# Of one row. Each has prompts of its own in the row's tree.
MOST_INJECTIONS = 256


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


def check_row(raw: Mapping[str, Any], default_id: str, *, unanswered: bool = False) -> CheckedRow:
    """Bring a raw row to canonical form and test every rule that needs no other row.

    `default_id` is the id of a row without one. All broken rules are reported, not the first.
    With `unanswered` a row may lack its answers, which are then empty.
    """
    given_by_model = ANSWERS if unanswered else ()
    found: dict[str, Any] = dict.fromkeys((*TRIPLET_SCHEMA.names, *INJECTION_FIELDS))
    errors: list[Finding] = []
    unknown = _gather(raw, found, errors)
    if found["id"] is None:
        found["id"] = default_id
    elif isinstance(found["id"], int) and not isinstance(found["id"], bool):
        found["id"] = str(found["id"])  # numbered rows are common and lose nothing as text
    row: dict[str, Any] = {name: found[name] for name in TRIPLET_SCHEMA.names}
    broken = {field for field, _ in errors}
    for field in TRIPLET_SCHEMA.names:
        if field not in broken and field != INJECTIONS:
            required = field in REQUIRED_FIELDS or field == "id"
            _check_field(field, row, required and field not in given_by_model, errors)
    broken = {field for field, _ in errors}
    if unanswered and row["benign_output"] is None:
        row["benign_output"] = ""
    _check_split(row, broken, errors)
    _check_counterfactual(row, broken, errors)
    flat = {name: found[name] for name in INJECTION_FIELDS}
    given = _given_injections(row[INJECTIONS], flat, broken, errors, unknown)
    row[INJECTIONS] = []
    for place, injection in given:
        row[INJECTIONS].append(injection)
        own: list[Finding] = []
        for field in INJECTION_FIELDS:
            if place + field not in broken:
                required = field in REQUIRED_INJECTION_FIELDS and field not in given_by_model
                _check_field(field, injection, required, own)
        if unanswered and injection["injection_output"] is None:
            injection["injection_output"] = ""
        if injection["attack_family"] is None:
            injection["attack_family"] = UNKNOWN_FAMILY
        bad = {field for field, _ in own} | {
            f.removeprefix(place) for f in broken if f.startswith(place)
        }
        _check_injection(injection, row, bad | broken, own)
        errors.extend((place + field, reason) for field, reason in own)
    warnings = [] if errors else _all_witness_warnings(row, given)
    return CheckedRow(row, errors, warnings, unknown)


def _given_injections(
    value: Any,
    flat: dict[str, Any],
    broken: set[str],
    errors: list[Finding],
    unknown: list[str],
) -> list[tuple[str, dict[str, Any]]]:
    """The injections of a row, each with what stands before its fields' names in problems.

    They are the list `injections`, which may be empty, or the fields of one beside the row's own.
    A row with neither is a plain one.
    """
    beside = [field for field in INJECTION_FIELDS if flat[field] is not None or field in broken]
    if value is None:
        return [("", flat)] if beside else []
    if not isinstance(value, list):
        errors.append((INJECTIONS, f"expected a list, found {_kind(value)}"))
        return []
    if beside:
        reason = f"stands beside {', '.join(beside)}, which say it again: give one of them"
        errors.append((INJECTIONS, reason))
        return []
    if len(value) > MOST_INJECTIONS:
        errors.append((INJECTIONS, f"{len(value)} of them; a row has at most {MOST_INJECTIONS}"))
        return []
    given = []
    for number, raw in enumerate(value):
        place = f"{INJECTIONS}[{number}]."
        if not isinstance(raw, Mapping):
            errors.append((place[:-1], f"expected an object, found {_kind(raw)}"))
            continue
        injection: dict[str, Any] = dict.fromkeys(INJECTION_FIELDS)
        own: list[Finding] = []
        unknown.extend(place + key for key in _gather(raw, injection, own))
        errors.extend((place + field, reason) for field, reason in own)
        broken.update(place + field for field, _ in own)
        given.append((place, injection))
    return given


def _gather(raw: Mapping[str, Any], row: dict[str, Any], errors: list[Finding]) -> list[str]:
    """Copy the values of all known spellings into `row`; returns the keys that are none."""
    unknown: list[str] = []
    taken_from: dict[str, str] = {}
    for key, value in raw.items():
        field = CANONICAL_NAME.get(key)
        if field is None or field not in row:
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


def _check_field(field: str, row: dict[str, Any], required: bool, errors: list[Finding]) -> None:
    """Type, presence and characters of one field. Empty optional text becomes None."""
    value = row[field]
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


def _check_split(row: dict[str, Any], broken: set[str], errors: list[Finding]) -> None:
    if row["split"] is not None and "split" not in broken:
        name = split_name(row["split"])
        if name is None:
            reason = f"{quoted(row['split'])} is none of {', '.join(SPLITS)}"
            errors.append(("split", reason))
        row["split"] = name


def _check_counterfactual(row: dict[str, Any], broken: set[str], errors: list[Finding]) -> None:
    other = row["benign_cf_input"]
    if (
        other is not None
        and not broken & {"benign_input", "benign_cf_input"}
        and _same(other, row["benign_input"])
    ):
        reason = "the same as benign_input, so it is no counterfactual"
        errors.append(("benign_cf_input", reason))


def _check_injection(
    injection: dict[str, Any], row: dict[str, Any], broken: set[str], errors: list[Finding]
) -> None:
    """Rules about what the fields say; fields in `broken` are not looked at again."""
    if not broken & {"benign_input", "injection_input"} and _same(
        injection["injection_input"], row["benign_input"]
    ):
        errors.append(("injection_input", "the same as benign_input, so nothing is injected"))
    safe, witness = injection["injection_output"], injection["witness"]
    attack = injection["attack_output"]
    judged = attack is not None and not broken & {"attack_output", "injection_output"}
    if judged and _same(attack, safe):
        errors.append(("attack_output", "the same as the safe answer, so nothing is attacked"))
    if witness is None or "witness" in broken:
        return
    if not folded(witness):
        errors.append(("witness", "only characters that nobody sees: no answer can show it"))
    if "injection_output" not in broken and contains_witness(safe, witness):
        reason = f"{quoted(witness)} is in the safe answer, so success cannot show"
        errors.append(("witness", reason))


def _same(one: str, other: str) -> bool:
    return one.strip() == other.strip()


def _all_witness_warnings(
    row: dict[str, Any], given: Sequence[tuple[str, dict[str, Any]]]
) -> list[Finding]:
    return [
        (place + field, reason)
        for place, injection in given
        for field, reason in _witness_warnings(row, injection)
    ]


def _witness_warnings(row: dict[str, Any], injection: dict[str, Any]) -> list[Finding]:
    """A witness that the clean prompt holds can be produced without any attack."""
    witness = injection["witness"]
    if witness is None:
        return []
    places = ["benign_input", "context"]
    leaks = (injection["payload"], injection["attack_family"])
    if leaks[0] != LEAKING_PAYLOAD and leaks[1] != LEAKING_FAMILY:
        places.append("system_instruction")
    return [
        ("witness", f"{quoted(witness)} is already in {place}")
        for place in places
        if row[place] is not None and contains_witness(row[place], witness)
    ]
