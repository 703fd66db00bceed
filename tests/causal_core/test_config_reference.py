"""Schema and reference page are the tree's, and every config that ships is valid by both."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest
import yaml

from causal_core.config import Config
from causal_core.config_reference import (
    REFERENCE_FILE,
    SCHEMA_FILE,
    reference_text,
    schema,
    schema_text,
)

REPOSITORY = Path(__file__).resolve().parents[2]
PRESETS = [*REPOSITORY.glob("configs/*.yaml"), *REPOSITORY.glob("ray_jobs/presets/*.yaml")]


def test_both_files_are_current():
    again = "write them again: python -m causal_core.config_reference"
    assert SCHEMA_FILE.read_text(encoding="utf-8") == schema_text(), again
    assert REFERENCE_FILE.read_text(encoding="utf-8") == reference_text(), again


def test_every_key_stands_in_the_reference_once():
    text = reference_text()
    for key in Config().flat():
        (line,) = [row for row in text.splitlines() if row.startswith(f"| `{key}` |")]
        assert line.split(" | ")[-1].strip("| "), f"{key} has no description"


@pytest.mark.parametrize("path", PRESETS, ids=lambda p: p.name)
def test_presets_name_the_schema_and_fit_it(path):
    text = path.read_text(encoding="utf-8")
    first = text.splitlines()[0]
    assert first.startswith("# yaml-language-server: $schema=")
    assert (path.parent / first.partition("=")[2]).resolve() == SCHEMA_FILE
    jsonschema.validate(yaml.safe_load(text), schema())


def test_the_defaults_and_a_typical_file_fit_the_schema():
    jsonschema.validate(Config().model_dump(mode="json"), schema())
    typical = {
        "data": {"train": "a.jsonl", "test": {"seen": "b.jsonl"}},
        "resources": {"workers": [1, 2]},
    }
    jsonschema.validate(typical, schema())


@pytest.mark.parametrize(
    "tree",
    [
        {"train": {"epoch": 1}},
        {"trane": {}},
        {"lora": {"rank": 0}},
        {"model": {"quantization": "int8"}},
        {"loss": {"lambda_task": "much"}},
    ],
)
def test_what_the_tree_refuses_the_schema_marks(tree):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(tree, schema())
