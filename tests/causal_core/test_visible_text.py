"""Text of others as it is shown: ordinary signs stay, the rest becomes an escape."""

from __future__ import annotations

from causal_core.visible_text import visible


def test_visible_keeps_ordinary_text() -> None:
    ordinary = "Zürich, 東京, עברית, 👍🏽\n\tline\u00a0two \\ end"
    assert visible(ordinary) == ordinary
    assert visible("a\x1b[0m\u200b\r") == "a\\x1b[0m\\u200b\\x0d"
