"""Data files of object stores: copied once to the cache of this machine, then read as any file.

Credentials come from the environment or the store's own files, as pyarrow finds them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from causal_core.credentials import message_without_credentials
from causal_core.files import cache_root, whole_or_absent
from causal_core.visible_text import quoted

_SCHEMES = ("s3://", "gs://")
_MOST_BYTES = 2**38  # of a file: what is larger is no triplets
_PIECE = 2**22
# A store that does not answer is one that is not there; its client would go on for 15 minutes.
_PATIENCE = "retry_limit_seconds=60"


def is_stored(location: str) -> bool:
    """Whether it names an object of a store."""
    return location.startswith(_SCHEMES)


def local_copy(location: str) -> Path:
    """The object's content in a file of this machine, copied anew when the object has changed.

    Raises:
        OSError: `strerror` says why there is none.
    """
    if location.startswith("gs://"):
        location += ("&" if "?" in location else "?") + _PATIENCE
    try:
        filesystem, path = fs.FileSystem.from_uri(location)
        found = filesystem.get_file_info(path)
        if found.type == fs.FileType.NotFound:
            raise FileNotFoundError(0, "no such file")
        if found.type != fs.FileType.File or found.size is None or found.size > _MOST_BYTES:
            raise OSError(0, "is no file, or larger than any of triplets")
        version = f"{location}\n{found.size}\n{found.mtime_ns}"
        folder = cache_root() / "remote" / hashlib.sha256(version.encode()).hexdigest()
        target = folder / Path(path).name
        if not target.is_file():
            with whole_or_absent(target) as temporary:
                _copy(filesystem, path, temporary, found.size)
        return target
    except (pa.ArrowException, ValueError, OSError) as error:
        reason = getattr(error, "strerror", None) or quoted(str(error), 200)
        raise OSError(0, message_without_credentials(f"cannot be fetched: {reason}")) from error


def _copy(filesystem: fs.FileSystem, path: str, target: Path, size: int) -> None:
    left = size
    with filesystem.open_input_stream(path) as source, target.open("wb") as copy:
        while piece := source.read(_PIECE):
            left -= len(piece)
            if left < 0:
                break
            copy.write(piece)
    if left:
        raise OSError(0, f"another number of bytes came than the {size:,} that it has")
