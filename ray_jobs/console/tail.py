"""A growing file, read by somebody else than its writer."""

from __future__ import annotations

import os
from pathlib import Path


class Tail:
    """The new whole lines of a growing file; one that shrank, or that
    another took the place of, is read from its start."""

    def __init__(self, path: Path, from_start: bool = True) -> None:
        self._path = path
        self._offset, self._inode = 0, 0
        if not from_start and path.is_file():
            status = path.stat()
            self._offset, self._inode = status.st_size, status.st_ino

    def lines(self) -> list[str]:
        try:
            with self._path.open("rb") as source:
                status = os.fstat(source.fileno())
                if status.st_ino != self._inode or status.st_size < self._offset:
                    self._offset, self._inode = 0, status.st_ino
                source.seek(self._offset)
                data = source.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole.decode("utf-8", errors="replace").splitlines()
