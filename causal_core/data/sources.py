"""Which files are read: `FILE#SPLIT` resolved, and what cannot be data refused before any row."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

from causal_core.credentials import without_credentials
from causal_core.data.opened import COMPRESSED, opened
from causal_core.data.remote import is_stored, local_copy
from causal_core.data.rules import split_name
from causal_core.data.saved import is_saved, saved_files
from causal_core.data.schema import SPLIT_ALIASES, SPLITS, DataError, RowProblem
from causal_core.files import checked_file
from causal_core.visible_text import quoted

TEXT_SUFFIXES = (".jsonl", ".json", ".ndjson")
COMPRESSED_SUFFIXES = tuple(suffix + COMPRESSED for suffix in TEXT_SUFFIXES)

_SEPARATED = (".csv", ".tsv")
_WIDE = "is {0} text; save it as UTF-8, e.g. with iconv -f {0} -t UTF-8"
_UTF32_MARKS = (b"\xff\xfe\0\0", b"\0\0\xfe\xff")
_HEAD_BYTES = 2**16
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LOCATION = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_GZIP = b"\x1f\x8b"
_NAMES = "|".join((*SPLITS, *SPLIT_ALIASES))
_SPLITS_OF_ROWS = re.compile(rf'\s*{{\s*"(?:{_NAMES})"\s*:\s*\['.encode())


@dataclass(frozen=True)
class Source:
    """One file to read, of which `split` is wanted (None: all of it)."""

    path: Path
    split: str | None
    id_stem: str  # of the ids of rows without one
    given: str  # what was named: the file, or the directory that it is a part of
    part: str | None = None  # the split of its rows that name none, by where the file is
    location: str | None = None  # in a store, of which `path` is a copy
    rows: range | None = None  # of a Parquet file, from 0: no others are read

    @property
    def name(self) -> str:
        return str(self.path) if self.location is None else without_credentials(self.location)

    @property
    def suffix(self) -> str:
        return suffix_of(self.path)


def suffix_of(path: Path) -> str:
    """What a file's name ends with: `.jsonl`, or `.jsonl.gz`."""
    ends = [suffix.lower() for suffix in path.suffixes[-2:]]
    return "".join(ends) if ends[-1:] == [COMPRESSED] else "".join(ends[-1:])


def split_selector(given: str | Path) -> tuple[str, str | None]:
    """`FILE#SPLIT` as file and split; a file whose own name has a `#` is taken as it is.

    `file://` locations are the files that they name.
    """
    if str(given).startswith("file:///"):
        location = urlsplit(str(given))
        mark = f"#{location.fragment}" if location.fragment else ""
        given = url2pathname(location.path) + mark
    if "#" not in Path(given).name or _exists(Path(given)):
        return str(given), None
    name, _, wanted = str(given).rpartition("#")
    return name, wanted


_MOST_FILES = 10_000  # of a pattern


class Found(NamedTuple):
    """A file that a name stands for."""

    path: Path
    part: str | None = None  # the split of its rows, by where it is
    inside: Path | None = None  # the saved data set that it is of
    location: str | None = None  # in a store, of which it is a copy


def files_of(name: str | Path) -> list[Found]:
    """A file itself, or a copy of what is in a store, or the files that a pattern matches, or those
    of a saved data set.

    Raises:
        OSError: `strerror` says what is wrong with the location, the directory or the pattern.
    """
    if is_stored(str(name)):
        return [Found(local_copy(str(name)), location=str(name))]
    path = Path(name)
    if _LOCATION.match(str(name)) and not _exists(path):
        raise OSError(0, "is no location that is read; known: a path, file:///PATH, s3://, gs://")
    if _exists(path):
        if path.is_dir() and is_saved(path):
            return [Found(file, part, path) for file, part in saved_files(path)]
        return [Found(path)]
    if not _is_pattern(path):
        return [Found(path)]
    matches = matching(path)
    if not 0 < len(matches) <= _MOST_FILES:
        count = f"more than {_MOST_FILES:,} files match" if matches else "no file matches"
        raise OSError(0, count)
    return [found for match in matches for found in files_of(match)]


def matching(pattern: Path) -> list[Path]:
    """What a pattern (`*`, `?`, `[...]`) stands for, in order; nothing for a name that is none."""
    if not _is_pattern(pattern):
        return []
    root = Path(pattern.anchor)
    try:
        found = root.glob(str(pattern.relative_to(root)))
        return sorted(islice(found, _MOST_FILES + 1))
    except (ValueError, OSError):  # a NUL in it, a name too long: no file is called so
        return []


def _is_pattern(path: Path) -> bool:
    return any(character in str(path) for character in "*?[")


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
        split = None
        if wanted is not None:
            split = split_name(wanted)
            if split is None:
                known = ", ".join((*SPLITS, *SPLIT_ALIASES))
                problems.append(_about(given, f"{quoted(wanted)} is no split; known: {known}"))
                continue
        try:
            files = files_of(name)
        except OSError as problem:
            problems.append(_about(name, str(problem.strerror)))
            continue
        for path, part, inside, location in files:
            reason = _unreadable(path, suffixes)
            if reason:
                problems.append(_about(location or path, reason))
                continue
            # Files of a saved data set are all called alike: the directory's name comes before.
            own = path.name.removesuffix(COMPRESSED)
            stem = ".".join([*_between(inside, path), Path(own).stem])
            namesakes = stems.setdefault(stem, [])
            if path not in namesakes:
                namesakes.append(path)
            elif wanted_twice := [
                s for s in sources if s.path == path and _overlap(s.split, split)
            ]:
                twice = dict.fromkeys((wanted_twice[0].given, name))
                also = f", as {' and '.join(twice)}" if len(twice) > 1 else ""
                problems.append(_about(location or path, f"is named twice{also}"))
            place = namesakes.index(path)
            stem += f"~{place + 1}" if place else ""
            sources.append(Source(path, split, stem, name, part, location))
    if not sources and not problems:
        problems.append(RowProblem("", 0, "", "no data files were given"))
    if problems:
        raise DataError(problems)
    return sources


def _overlap(one: str | None, other: str | None) -> bool:
    """Whether two selections of a file's rows have some in common."""
    return one is None or other is None or one == other


def _between(inside: Path | None, path: Path) -> tuple[str, ...]:
    """The saved data set that a file is of and the folders from there to it, by name."""
    return () if inside is None else (inside.name, *path.relative_to(inside).parent.parts)


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
            return "is a directory, and none that `datasets` has saved; name the files in it"
        return problem.strerror
    suffix = suffix_of(path)
    if suffix not in suffixes:
        known = ", ".join(suffixes)
        return f"unknown kind of file {quoted(suffix)}; known: {known}"
    if not size:  # nor opened: what the kernel shows as a file, such as its log, may never end
        return "the file is empty"
    try:
        if suffix.endswith(COMPRESSED) and not _begins_with(path, _GZIP):
            return f"is not compressed; name it {suffix.removesuffix(COMPRESSED)}"
        with opened(path) as handle:
            head = handle.read(_HEAD_BYTES)
    except OSError as problem:
        return f"cannot be opened: {problem.strerror}"
    if suffix in (*TEXT_SUFFIXES, *COMPRESSED_SUFFIXES):
        return _no_text(head, ".jsonl") or _no_json(head)
    for separated in _SEPARATED:
        if suffix.startswith(separated):
            return _no_text(head, separated)
    return None


def _begins_with(path: Path, mark: bytes) -> bool:
    with path.open("rb") as handle:
        return handle.read(len(mark)) == mark


def _no_text(head: bytes, suffix: str) -> str | None:
    """What the beginning of a file shows it to be instead of text in UTF-8, or None."""
    if head.startswith(b"PAR1"):
        return "is a Parquet file; name it .parquet"
    if head.startswith(b"ARROW1"):
        return "is an Arrow file; name it .arrow"
    if head.startswith(_GZIP):
        return f"is compressed with gzip; name it {suffix}{COMPRESSED}"
    if head.startswith(_UTF32_MARKS):
        return _WIDE.format("UTF-32")
    return _WIDE.format("UTF-16") if _is_utf16(head) else None


def _no_json(head: bytes) -> str | None:
    """What the beginning of a text file shows about its JSON, or None."""
    if whole_document(head) is None and _is_spread(head):
        return (
            "holds a JSON object spread over several lines; write each on one line (jq -c .), or, "
            "where a list in it holds the rows, that list alone"
        )
    return None


def whole_document(head: bytes) -> str | None:
    """Whether a text file is one JSON value: "array" of rows, or "splits" (an object of such
    arrays by split); None for lines, of which the first may be such a value."""
    text = head.removeprefix(_BYTE_ORDER_MARK).lstrip()
    array = text.startswith(b"[")
    if not array and not _SPLITS_OF_ROWS.match(text):
        return None
    first, _, rest = text.partition(b"\n")
    if rest.strip() and _is_json(first.decode(errors="replace")):
        return None
    return "array" if array else "splits"


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
