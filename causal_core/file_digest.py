"""sha256 of files, computed once: opening a large data set must not read it."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from pathlib import Path


def file_digest(path: Path, cache: Path) -> str:
    """sha256 of a file's content, remembered in `cache` by path, size, inode and times.

    A file whose metadata changed is read again. One that was written within the last moments is
    read and not remembered: its clock may be too coarse to show the next write (as git treats it).

    Raises:
        OSError: the file cannot be read.
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
        entry.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=entry.parent, suffix=".tmp")
        with os.fdopen(handle, "w", encoding="utf-8") as target:
            json.dump({"stamp": before, "sha256": digest}, target)
        Path(temporary).replace(entry)
    return digest


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]


def _is_settled(path: Path) -> bool:
    return time.time_ns() - path.stat().st_ctime_ns > 2 * 10**9
