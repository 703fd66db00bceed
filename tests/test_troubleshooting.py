"""Every message that docs/troubleshooting.md quotes is one that the program really prints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
TEXT = (REPOSITORY / "docs" / "troubleshooting.md").read_text()
ENTRIES = re.findall(r"^### (\d+)\. (.+?)\n(.*?)(?=^##)", TEXT, re.M | re.S)


def words(text: str) -> str:
    """Only letters, so that line breaks, quotes and `{values}` of f-strings do not matter."""
    return "".join(re.findall(r"[a-z]+", re.sub(r"\{[^{}]*\}", "", text.lower())))


SOURCE = "".join(
    words(re.sub(r'"\s*\n\s*f?"', "", path.read_text()))  # adjacent literals are one message
    for package in ("causal_core", "ray_jobs")
    for path in sorted((REPOSITORY / package).rglob("*.py"))
)


def test_there_are_fifteen_in_order():
    assert [int(number) for number, *_ in ENTRIES] == list(range(1, 16))


@pytest.mark.parametrize(("number", "title", "body"), ENTRIES, ids=lambda v: v[:30])
def test_the_quoted_message_exists(number, title, body):
    (quoted, *_) = re.findall(r"```\n(.*?)\n```", body, re.S)
    for line in quoted.splitlines():
        # The prefixes are exit_codes'; a message is put together at its punctuation.
        message = re.sub(r"^(error|run failed): |\S*/\S+|`\w+`|^  \S+: ", "", line)
        parts = [part for part in re.split(r"[;:.?]", message) if len(part.split()) > 1]
        assert parts, line
        for part in parts:
            assert words(part) in SOURCE, part
