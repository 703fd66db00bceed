"""The bytes of a data file, unpacked where they are compressed, within bounds."""

from __future__ import annotations

import errno
import gzip
import io
import zlib
from pathlib import Path
from typing import BinaryIO, cast

from causal_core.data.schema import DataError

COMPRESSED = ".gz"
# Text compresses to a tenth or a fiftieth. What decodes to more than all of this is a bomb.
_BOMB_BYTES, _BOMB_RATIO = 128 * 2**20, 200


def most_decoded(path: Path) -> int:
    """Bytes that a file may decode to."""
    return max(_BOMB_BYTES, _BOMB_RATIO * path.stat().st_size)


def bomb(path: Path, decoded: int) -> DataError:
    """The error for a file that decodes to more."""
    return DataError.in_file(
        path,
        f"holds at least {decoded // 2**20:,} MiB of text in {path.stat().st_size:,} bytes: "
        "refused, as decoding it could fill the memory; write texts that are not repeated",
    )


def opened(path: Path) -> BinaryIO:
    """The content of a file from its beginning.

    Raises:
        OSError: here or while reading; `strerror` says why.
        DataError: while reading, where far more comes out than the file's size lets one expect.
    """
    if path.suffix.lower() != COMPRESSED:
        return path.open("rb")
    return cast(BinaryIO, io.BufferedReader(_Unpacked(path)))


class _Unpacked(io.RawIOBase):
    """A gzip file's content."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = gzip.GzipFile(path, "rb")
        self._left = most_decoded(path)

    def readable(self) -> bool:
        return True

    def readinto(self, target: memoryview) -> int:  # type: ignore[override]
        try:
            data = self._file.read1(len(target))
        except (EOFError, zlib.error, gzip.BadGzipFile) as problem:
            raise OSError(errno.EIO, f"no whole gzip file ({problem})") from problem
        self._left -= len(data)
        if self._left < 0:
            raise bomb(self._path, most_decoded(self._path))
        target[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()
