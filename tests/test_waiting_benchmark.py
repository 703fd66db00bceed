"""The table of waiting times: each command and checkout with its spread."""

from __future__ import annotations

from benchmarks.waiting import table


def test_each_command_has_a_row_for_each_checkout():
    found = {"help": {"before": [3.0, 1.0, 2.0], "after": [0.5]}, "demo": {"after": [60.0]}}
    assert table(found)[2:] == [
        "| help | before | 1.00 s | 2.00 s | 3.00 s | 3 |",
        "| help | after | 0.50 s | 0.50 s | 0.50 s | 1 |",
        "| demo | after | 60.00 s | 60.00 s | 60.00 s | 1 |",
    ]
