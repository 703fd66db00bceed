"""Names of a run's files, whole-or-absent writes, digests, and where caches live."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from causal_core.errors import UnwritableError

# What a run directory holds.
CONFIG = "config.yaml"  # the resolved config
METRICS_FILE = "metrics.jsonl"  # losses and metrics by step, free of the clock
PERFORMANCE_FILE = "performance.jsonl"  # seconds, tokens per second, memory by step
SUMMARY = "summary.json"  # all final numbers
BEST = "best"  # the best checkpoint
LOG = "log"  # what workers logged, and what Ray said
_REMOTE = re.compile(r"\w[\w+.-]+:/")
_MOST_VALUES = 200  # of a record
# How safetensors and tokenizers say why a file was not written: as no OSError, and in words.
_OF_RUST = re.compile(r"\(os error (\d+)\)")
_REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM,
             errno.EIO}  # fmt: skip


CACHE_SETTING = "data.cache_dir or $CAUSAL_RAY_CACHE"


def cache_root(configured: str | None = None) -> Path:
    """The cache directory: the config's, else $CAUSAL_RAY_CACHE, else ~/.cache/causal-ray."""
    chosen = configured or os.environ.get("CAUSAL_RAY_CACHE")
    try:
        return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "causal-ray"
    except RuntimeError as error:  # as pathlib has it
        raise UnwritableError(
            f"there is no home directory for a cache ({error}): choose a place with {CACHE_SETTING}"
        ) from None


def is_remote(location: str | Path) -> bool:
    """Whether it is no place of this machine: `s3://bucket/x`, or what a path makes of it."""
    return _REMOTE.match(str(location)) is not None


def absolute_location(location: str) -> str:
    """The same place from any working directory; `s3://bucket/x` as it is."""
    return location if "://" in location else str(Path(location).expanduser().absolute())


def checked_file(path: Path) -> os.stat_result:
    """The status of a regular file, which is not opened: a pipe would wait for its writer for ever,
    a device has no end, and a file that the kernel makes up (/proc/kmsg) may be either.

    Raises:
        OSError: `strerror` says in words why it cannot be read, whatever kind of thing it is.
    """
    try:
        status = path.stat()
    except ValueError as error:  # a NUL in its name
        raise OSError(errno.EINVAL, "no file can have such a name", str(path)) from error
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for is_it, name in _KINDS if is_it(status.st_mode)), "no file")
        raise OSError(errno.EINVAL, f"is {kind}, not a regular file", str(path))
    if status.st_dev in _made_up():
        raise OSError(errno.EINVAL, "is made up by the kernel, not a regular file", str(path))
    return status


def _made_up() -> set[int]:
    """The file systems whose files are no bytes on a disk, though they look regular."""
    return {place.stat().st_dev for place in (Path("/proc"), Path("/sys")) if place.is_mount()}


_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def read_small(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes (`OSError` says what else it is)."""
    checked_file(path)
    with path.open("rb") as source:
        content = source.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"has more than {limit:,} bytes", str(path))
    return content


@contextmanager
def writes_to(place: Path, moved_by: str) -> Iterator[None]:
    """Says what cannot be written, and which setting moves it, where the file system refuses.

    Raises:
        UnwritableError: instead of the OSError of the block, or of what safetensors and tokenizers
            raise in its place.
    """
    try:
        yield
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) else _refusal_in(str(error))
        if reason is None or getattr(error, "errno", 0) is None:  # a library's own
            raise
        raise UnwritableError(
            f"{place} cannot be written: {reason}. Make room or give permission "
            f"there, or choose another place with {moved_by}"
        ) from error


def _refusal_in(message: str) -> str | None:
    """The file system's refusal to write that a library of Rust passes on in words, or None."""
    found = _OF_RUST.search(message)
    number = int(found[1]) if found else 0
    return os.strerror(number) if number in _REFUSALS else None


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a file, one JSON object of plain values with a `step` per line.

    It ends before the first line that is none: one cut off by a crash, or damaged.
    """
    if not path.is_file():
        return []
    records = []
    with path.open("rb") as lines:
        for line in lines:
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                break
            if not _is_record(record):
                break
            records.append(record)
    return records


def _is_record(found: object) -> bool:
    return (
        isinstance(found, dict)
        and type(found.get("step")) is int
        and len(found) <= _MOST_VALUES
        and not any(isinstance(value, dict | list) for value in found.values())
        and all(abs(value) < 2**63 for value in found.values() if isinstance(value, int))
    )


@contextmanager
def whole_or_absent(path: Path, *, durable: bool = False, first: bool = False) -> Iterator[Path]:
    """A temporary path to write to: it becomes `path` when the block ends, and goes if it fails.

    So readers find the earlier file or the new one, never a part. Several processes, on several
    machines, may write the same path at once: the last one to finish wins.

    Args:
        first: The first one wins: a file that is there stays.
        durable: The bytes are on the disk before the name is, so that a power cut leaves no empty
            file either.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.partial")
    try:
        yield temporary
        if durable:
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
        if not (first and _linked(temporary, path)):
            temporary.replace(path)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # a write knows no name
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _linked(written: Path, path: Path) -> bool:
    """Whether there is a file at `path` now, an earlier one or this one; not where the file system
    has no hard links."""
    try:
        os.link(written, path)
    except FileExistsError:
        return True
    except OSError:
        return False
    return True


@contextmanager
def whole_directory(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary directory to fill: it becomes `path` when the block ends, and goes if it fails.

    Args:
        replace: An earlier `path` stays until the new one is whole, and goes then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex[:12]
    temporary, old = (path.with_name(f".{path.name}.{mark}.{end}") for end in ("partial", "old"))
    temporary.mkdir()
    try:
        yield temporary
        if replace and path.exists():
            path.rename(old)
        try:
            temporary.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_whole(path: Path, content: str | bytes, *, first: bool = False) -> Path:
    """Writes a file (text as UTF-8), whole or not at all, and returns its path.

    Args:
        first: A file that is there stays (`whole_or_absent`).
    """
    with whole_or_absent(path, first=first) as temporary:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return path


def set_aside(directory: Path) -> Path | None:
    """Renames an existing run directory (`--fresh`); nothing is deleted."""
    if not directory.exists():
        return None
    number = 1
    while (target := directory.with_name(f"{directory.name}.{number}")).exists():
        number += 1
    directory.rename(target)
    return target


def file_digest(path: Path, cache: Path) -> str:
    """sha256 of a file's content, remembered in `cache` by path, size, inode and times.

    A file whose metadata changed is read again. One that was written within the last moments is
    read and not remembered: its clock may be too coarse to show the next write (as git treats it).

    Raises:
        OSError: the file cannot be read.
        UnwritableError: the cache cannot be written.
    """
    before = _stamp(path)
    entry = cache / "digests" / f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()}.json"
    try:
        known = json.loads(entry.read_text(encoding="utf-8"))
        if known["stamp"] == before:
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # nothing known, or nothing that can be read
    with path.open("rb") as source:
        digest = hashlib.file_digest(source, "sha256").hexdigest()
    if _stamp(path) == before and _is_settled(path):
        with writes_to(cache, CACHE_SETTING):
            write_whole(entry, json.dumps({"stamp": before, "sha256": digest}))
    return digest


def _stamp(path: Path) -> list[int]:
    status = checked_file(path)
    return [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]


def _is_settled(path: Path) -> bool:
    return time.time_ns() - path.stat().st_ctime_ns > 2 * 10**9
