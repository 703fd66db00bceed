"""What a command prints for a program (`--json`): one JSON document on stdout, and nothing else.

Where it fails before that, the document says why: `{"ok": false, "errors": [{"file", "line",
"field", "reason"}, ...], "error_count": n}`. The exit code says the same; what is shown to a person
stands on stderr. Wrong usage (exit code 2) and an interrupt leave stdout empty.
"""

from __future__ import annotations

import json
from typing import Any

_due = False  # whether the command of this process has been asked for one and has not printed it


def answers_in_json(asked: bool) -> bool:
    """Callback of the option: the command that is parsed begins."""
    global _due
    _due = asked
    return asked


def print_json(answer: Any) -> None:
    """The command's one document."""
    global _due
    _due = False
    print(json.dumps(answer))


def print_json_error(error: Exception) -> None:
    """Why there is none, where one is due."""
    if not _due:
        return
    from causal_core.data.schema import DataError, RowProblem

    if isinstance(error, DataError):
        found, count = [vars(problem) for problem in error.problems], error.count
    else:
        found, count = [vars(RowProblem("", 0, "", str(error)))], 1
    print_json({"ok": False, "errors": found, "error_count": count})
