"""The configuration as a JSON schema for editors and as a page for people, from the typed tree.

`python -m causal_core.config_reference` writes both, `causal_core/config.schema.json` and
`docs/config.md`; a test holds them to the tree.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from causal_core.config import Config
from causal_core.config_loss import LOSS_PRESETS

SCHEMA_FILE = Path(__file__).with_name("config.schema.json")
REFERENCE_FILE = Path(__file__).resolve().parents[1] / "docs" / "config.md"
_DRAFT = "https://json-schema.org/draft/2020-12/schema"
_ONE_IS_A_LIST = ("train", "validation")  # of the section data: one file may stand for a list


def schema() -> dict[str, Any]:
    """The JSON schema of a config file, which may hold a sweep's section `tune` as well."""
    found = Config.model_json_schema()
    data = found["$defs"]["DataSection"]["properties"]
    for name in _ONE_IS_A_LIST:
        data[name] = _or_one(data[name])
    data["test"]["additionalProperties"] = _or_one(data["test"]["additionalProperties"])
    found["properties"]["tune"] = {
        "type": "object",
        "description": "Of a sweep (causal tune); see docs/tuning.md.",
    }
    return {"$schema": _DRAFT, **found, "title": "A causal-ray run"}


def schema_text() -> str:
    """The content of `config.schema.json`."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


def reference_text() -> str:
    """The content of `docs/config.md`."""
    whole = schema()
    parts = [_HEAD]
    top: list[str] = []
    for name, section in whole["properties"].items():
        if name == "tune":
            continue
        target = _resolved(section, whole)
        if "properties" not in target:
            top.append(_row(name, target, whole))
            continue
        text = " ".join(target.get("description", "").split())
        rows = [_row(f"{name}.{key}", value, whole) for key, value in target["properties"].items()]
        parts.append("\n".join([f"## {name}", "", text, "", *_TABLE, *rows]))
        if name == "loss":
            parts.append(_presets())
    parts.insert(1, "\n".join([*_TABLE, *top]))
    return "\n\n".join(parts) + "\n"


def write() -> None:
    """Writes both files."""
    SCHEMA_FILE.write_text(schema_text(), encoding="utf-8")
    REFERENCE_FILE.write_text(reference_text(), encoding="utf-8")


_HEAD = """# Every setting of a run

*Written by `python -m causal_core.config_reference`.*

A config is a YAML file with the sections below; what it leaves out has the default, and any of it
can be given on the command line as `section.key=value` (`causal train CONFIG train.epochs=1`). An
unknown key is an error that names the nearest one. `causal init` writes a config with its memory
planned. A first line

    # yaml-language-server: $schema=PATH/causal_core/config.schema.json

lets editors complete and check it. The section `tune` of a sweep: [tuning.md](tuning.md)."""
_TABLE = ("| key | type | default | what it does |", "|---|---|---|---|")


def _or_one(array: dict[str, Any]) -> dict[str, Any]:
    """A list, or the one item of it as it is."""
    words = {k: v for k, v in array.items() if k in ("default", "description", "title")}
    rest = {k: v for k, v in array.items() if k not in words}
    return {**words, "anyOf": [rest, rest["items"]]}


def _row(key: str, field: Mapping[str, Any], whole: Mapping[str, Any]) -> str:
    target = _resolved(field, whole)
    text = " ".join((field.get("description") or target.get("description", "")).split())
    default = json.dumps(field["default"], ensure_ascii=False) if "default" in field else ""
    cells = (f"`{key}`", _kind(target, whole), f"`{default}`" if default else "", text)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _resolved(field: Mapping[str, Any], whole: Mapping[str, Any]) -> dict[str, Any]:
    """A field with what it refers to put in its place."""
    if "$ref" not in field:
        return dict(field)
    target = whole["$defs"][field["$ref"].rpartition("/")[2]]
    return {**target, **{k: v for k, v in field.items() if k != "$ref"}}


def _kind(field: Mapping[str, Any], whole: Mapping[str, Any]) -> str:
    """A type in words, with its bounds: `integer ≥ 1`, `none or nf4`, `text or none`."""
    field = _resolved(field, whole)
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_kind(inner, whole) for inner in field["anyOf"]))
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if field.get("type") == "array":
        if "prefixItems" in field:
            return f"[{', '.join(_kind(inner, whole) for inner in field['prefixItems'])}]"
        return f"list of {_kind(field.get('items', {}), whole)}"
    if field.get("type") == "object":
        values = field.get("additionalProperties")
        if "properties" in field:
            return "{" + ", ".join(field["properties"]) + "}"
        return f"name: {_kind(values, whole)}" if isinstance(values, dict) and values else "mapping"
    names = {"string": "text", "null": "none", "boolean": "true, false"}
    kind = names.get(str(field.get("type", "")), str(field.get("type", "any")))
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {_number(field[name])}" for name, sign in signs.items() if name in field]
    return " ".join([kind, ", ".join(bounds)]).strip()


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:g}"


def _presets() -> str:
    terms = list(dict.fromkeys(term for weights in LOSS_PRESETS.values() for term in weights))
    lines = [
        f"| `{preset}` | " + " | ".join(f"{weights.get(term, 0.0):g}" for term in terms) + " |"
        for preset, weights in LOSS_PRESETS.items()
    ]
    head = ["| preset | " + " | ".join(f"`lambda_{term}`" for term in terms) + " |"]
    return "\n".join([*head, "|---" * (len(terms) + 1) + "|", *lines])


if __name__ == "__main__":
    write()
