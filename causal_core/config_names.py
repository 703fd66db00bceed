"""Names of the config that have changed: old ones are read, with a warning that names the new one.

Fingerprints keep the old words, so that what was written under them stays the same run.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

log = logging.getLogger(__name__)

KEYS = {"loss.kind": "loss.contrastive"}
VALUES = {"loss.preset": {"reports": "contrastive"}}  # by the (new) key


def current(key: str, value: Any) -> tuple[str, Any]:
    """A key and its value as they are called now."""
    name = KEYS.get(key, key)
    if name != key:
        log.warning("%s is called %s now", key, name)
    values = VALUES.get(name, {})
    if isinstance(value, str) and value in values:
        log.warning("%s=%s is called %s=%s now", name, value, name, values[value])
        value = values[value]
    return name, value


def current_section(section: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a section as they are called now (`ValueError` where both names are given)."""
    refuse_both(f"{section}.{key}" for key in fields)
    named = [(key, *current(f"{section}.{key}", value)) for key, value in fields.items()]
    return {path.rpartition(".")[2] if path in KEYS.values() else k: v for k, path, v in named}


def refuse_both(keys: Iterable[str]) -> None:
    """Nothing is given under its old name and its new one (`ValueError`)."""
    given = set(keys)
    for old, new in KEYS.items():
        if {old, new} <= given:
            raise ValueError(f"{old} is the old name of {new}: give {new} alone")


def first(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves by dotted path as they were called first."""
    keys = {new: old for old, new in KEYS.items()}
    values = {key: {new: old for old, new in v.items()} for key, v in VALUES.items()}
    return {
        keys.get(key, key): values[key].get(value, value) if key in values else value
        for key, value in fields.items()
    }
