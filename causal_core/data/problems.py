"""The problems of the files that are read: a bounded number is kept, and all are counted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from causal_core.data.schema import CANONICAL_NAME, REQUIRED_FIELDS, RowProblem
from causal_core.visible_text import quoted, shown

# A hostile file of 10 KB can have 21 million problems; nobody reads more than these.
KEPT = 1000
_KEYS_SHOWN = 10
HOW_TO_MAP = "say where they are: --map FIELD=KEY (data.columns in a config)"


@dataclass
class Problems:
    """The first `KEPT` problems, and how many there are."""

    kept: list[RowProblem] = field(default_factory=list)
    count: int = 0

    def add(self, problem: RowProblem) -> None:
        self.count += 1
        if len(self.kept) < KEPT:
            self.kept.append(problem)

    def extend(self, problems: Iterable[RowProblem], count: int) -> None:
        """Adds `count` problems, of which these are the first."""
        self.count += count
        self.kept.extend(islice(problems, max(0, KEPT - len(self.kept))))


class FileErrors:
    """The errors of one file. A field that no row of it has is one error, not one for each row."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._missing: dict[str, list[tuple[int, RowProblem]]] = {}  # with the order of finding
        self._missing_counts: dict[str, int] = {}
        self._others: list[tuple[int, RowProblem]] = []
        self._count = 0

    def add(self, problem: RowProblem) -> None:
        kept = self._others
        if problem.reason == "missing":
            kept = self._missing.setdefault(problem.field, [])
            counts = self._missing_counts
            counts[problem.field] = counts.get(problem.field, 0) + 1
        if len(kept) < KEPT:
            kept.append((self._count, problem))
        self._count += 1

    def close(
        self, rows: int, keys: Iterable[str], into: Problems, shape: str | None = None
    ) -> bool:
        """Hands the errors over in the order of the file, now that its number of rows is known.

        Args:
            keys: What the rows have instead of fields that none of them has.
            shape: What an only row is, where it is a whole data set (`holds_rows`).

        Returns:
            Whether the file has been told to be of another layout as a whole.
        """
        if rows == 1 and shape is not None:
            into.add(RowProblem(self._file, 0, "", shape))
            return True
        if rows and all(self._missing_counts.get(name) == rows for name in REQUIRED_FIELDS):
            into.add(RowProblem(self._file, 0, "", no_fields(REQUIRED_FIELDS, keys)))
            return True
        found, count = self._others, self._count
        for name, kept in self._missing.items():
            if rows > 1 and self._missing_counts[name] == rows:
                kept = [(-1, RowProblem(self._file, 0, name, f"missing in all {rows:,} rows"))]
                count -= rows - 1
            found = found + kept
        found.sort(key=lambda item: item[0])
        into.extend((problem for _, problem in found), count)
        return False


def holds_rows(row: Mapping[str, Any]) -> str | None:
    """What is wrong with a row that is a data set itself, or None."""
    columns = [name for name in REQUIRED_FIELDS if isinstance(row.get(name), list | Mapping)]
    if len(columns) == len(REQUIRED_FIELDS):
        return (
            "is one object of columns; write a row a line, as pandas does with "
            'to_json(FILE, orient="records", lines=True)'
        )
    held = [
        key
        for key, value in row.items()
        if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value)
    ]
    if not held or any(CANONICAL_NAME.get(key) in REQUIRED_FIELDS for key in row):
        return None
    names = ", ".join(quoted(key[:60]) for key in held[:_KEYS_SHOWN])
    return (
        f"is one object, and no row; where rows are in {names}, write that list alone "
        f"(jq '.[{json.dumps(shown(held[0][:60]))}]')"
    )


def no_fields(fields: Sequence[str], keys: Iterable[str]) -> str:
    """What is wrong with a file that has none of these fields in any row."""
    names = list(keys)
    known = ", ".join(shown(name[:60]) for name in names[:_KEYS_SHOWN]) or "none"
    more = ", ..." if len(names) > _KEYS_SHOWN else ""
    return f"no row has {', '.join(fields)}, but: {known}{more}; {HOW_TO_MAP}"
