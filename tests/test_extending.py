"""The worked examples of docs/extending.md run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from causal_core.data import reader
from causal_core.loss import objective

TEXT = (Path(__file__).resolve().parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
SECTIONS = {
    title: re.findall(r"```python\n(.*?)```", body, re.S)
    for title, body in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", TEXT, re.M | re.S)
}


@pytest.fixture(scope="module")
def page():
    """What the page's blocks have defined so far; tables that they add to are put back."""
    terms, formats = objective.TERMS, dict(reader.FORMATS)
    yield {"__name__": "extending"}
    objective.TERMS = terms
    reader.FORMATS.clear()
    reader.FORMATS.update(formats)


@pytest.mark.parametrize("title", SECTIONS)
def test_the_example_runs(title, page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert SECTIONS[title]
    for block in SECTIONS[title]:
        code = compile(block, f"docs/extending.md: {title}", "exec", dont_inherit=True)
        exec(code, page)
