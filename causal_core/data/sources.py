"""Which files are read: `FILE#SPLIT` resolved, and what cannot be data refused before any row."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from causal_core.credentials import without_credentials
from causal_core.data.rules import split_name
from causal_core.data.schema import SPLIT_ALIASES, SPLITS, DataError, RowProblem
from causal_core.files import checked_file
from causal_core.visible_text import quoted

TEXT_SUFFIXES = (".jsonl", ".json", ".ndjson")

_HEAD_BYTES = 2**16
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Source:
    """One file to read, of which `split` is wanted (None: all of it)."""

    path: Path
    split: str | None
    id_stem: str  # of the ids of rows without one

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def suffix(self) -> str:
        return self.path.suffix.lower()


def split_selector(given: str | Path) -> tuple[str, str | None]:
    """`FILE#SPLIT` as file and split; a file whose own name has a `#` is taken as it is."""
    if "#" not in Path(given).name or _exists(Path(given)):
        return str(given), None
    name, _, wanted = str(given).rpartition("#")
    return name, wanted


def resolve_sources(paths: Iterable[str | Path], suffixes: Sequence[str]) -> list[Source]:
    """The files to read; those that cannot be read at all are refused, all of them at once.

    Args:
        suffixes: Of the kinds of file that can be read.
    """
    sources: list[Source] = []
    problems: list[RowProblem] = []
    stems: dict[str, list[Path]] = {}
    for given in paths:
        name, wanted = split_selector(given)
        path, split = Path(name), None
        if wanted is not None:
            split = split_name(wanted)
            if split is None:
                known = ", ".join((*SPLITS, *SPLIT_ALIASES))
                problems.append(_about(given, f"{quoted(wanted)} is no split; known: {known}"))
                continue
        reason = _unreadable(path, suffixes)
        if reason:
            problems.append(_about(name, reason))
            continue
        namesakes = stems.setdefault(path.stem, [])
        if path not in namesakes:
            namesakes.append(path)
        place = namesakes.index(path)
        sources.append(Source(path, split, path.stem + (f"~{place + 1}" if place else "")))
    if not sources and not problems:
        problems.append(RowProblem("", 0, "", "no data files were given"))
    if problems:
        raise DataError(problems)
    return sources


def _about(path: str | Path, reason: str) -> RowProblem:
    return RowProblem(without_credentials(str(path)), 0, "", reason)


def _exists(path: Path) -> bool:
    """Whether there is something; a name that no file can have (too long, NUL) names nothing."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _unreadable(path: Path, suffixes: Sequence[str]) -> str | None:
    """Why a path cannot be a data file, or None."""
    try:
        size = checked_file(path).st_size
    except FileNotFoundError:
        return "no such file"
    except OSError as problem:
        if _exists(path) and path.is_dir():
            return "is a directory; name the files in it"
        return problem.strerror
    suffix = path.suffix.lower()
    if suffix not in suffixes:
        known = ", ".join(suffixes)
        return f"unknown kind of file {quoted(suffix)}; known: {known}"
    if not size:  # nor opened: what the kernel shows as a file, such as its log, may never end
        return "the file is empty"
    try:
        with path.open("rb") as handle:
            head = handle.read(_HEAD_BYTES)
    except OSError as problem:
        return f"cannot be opened: {problem.strerror}"
    return _no_lines_of_json(head) if suffix in TEXT_SUFFIXES else None


def _no_lines_of_json(head: bytes) -> str | None:
    """What the beginning of a text file shows it to be instead of JSON lines, or None."""
    if head.startswith(b"PAR1"):
        return "is a Parquet file; name it .parquet"
    if head.startswith(b"\x1f\x8b"):
        return "is compressed with gzip; unpack it first"
    if _is_utf16(head):
        return "is UTF-16 text; save it as UTF-8, e.g. with iconv -f UTF-16 -t UTF-8"
    if head.removeprefix(_BYTE_ORDER_MARK).lstrip().startswith(b"["):
        return "is one JSON array; write one object per line instead"
    if _is_spread(head):
        return "holds a JSON object spread over several lines; write each on one line (jq -c .)"
    return None


def _is_utf16(head: bytes) -> bool:
    """By its mark, or without one by text in which every other byte is NUL."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return True
    start = head[:64]
    return len(start) >= 8 and any(
        not any(start[zero::2]) and all(start[1 - zero :: 2]) for zero in (0, 1)
    )


def _is_spread(head: bytes) -> bool:
    """Whether the first object goes on after its line."""
    text = head.removeprefix(_BYTE_ORDER_MARK).decode(errors="ignore").lstrip()
    first, _, rest = text.partition("\n")
    if not first.startswith("{") or not rest.strip() or _is_json(first):
        return False
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError:
        # Its end may be beyond what was read; a line that is cut off ends otherwise.
        return len(head) == _HEAD_BYTES and first.rstrip().endswith(("{", "[", ","))
    except (ValueError, RecursionError):
        return False
    return end > len(first)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
