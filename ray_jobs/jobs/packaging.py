"""What a submitted job takes along: this program's own code, its config, and small data files.

An upload is made from a list of what belongs in it, never from a directory with exceptions: what
else lies beside the code (keys, data, checkpoints, `.git`) cannot slip in.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from causal_core.errors import UserError

PACKAGES = ("causal_core", "ray_jobs", "tune_spaces")
JOB_CONFIG = "job.yaml"
LIMIT_BYTES = (
    50 * 10**6
)  # Ray's dashboard takes 100 MiB and keeps every upload in the head's memory

_CODE_SUFFIXES = {".py", ".yaml", ".json", ".j2", ".jinja", ".typed"}
_LARGEST_SHOWN = 5
# Equal content gives an equal archive, which Ray then does not upload again.
_NO_TIME = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Upload:
    """A zip archive that becomes the job's working directory."""

    archive: Path
    files: int
    size: int  # bytes

    def __str__(self) -> str:
        return f"{self.files} files, {self.size / 1e6:.1f} MB"


def pack(archive: Path, texts: Mapping[str, str], data: Iterable[Path]) -> Upload:
    """Writes the archive of a job.

    Args:
        archive: Where to; ends in `.zip`.
        texts: Content by file name, e.g. the resolved config.
        data: Files below the current directory; they keep their relative paths.

    Raises:
        UserError: the archive is larger than `LIMIT_BYTES`; names the largest files.
    """
    sources = {**_code(), **{str(path): path for path in data}}
    with zipfile.ZipFile(archive, "w") as target:
        for name, text in sorted(texts.items()):
            _add(target, name, text.encode("utf-8"))
        for name, path in sorted(sources.items()):
            _add(target, name, path.read_bytes())
        packed = target.infolist()
    size = archive.stat().st_size
    if size > LIMIT_BYTES:
        largest = sorted(packed, key=lambda item: -item.compress_size)[:_LARGEST_SHOWN]
        listed = "\n".join(
            f"  {item.compress_size / 1e6:8.1f} MB  {item.filename}" for item in largest
        )
        raise UserError(
            f"the upload would be {size / 1e6:.1f} MB, more than {LIMIT_BYTES / 1e6:.0f} MB. Put "
            "large files on storage that every node reaches and give their absolute path. "
            f"The largest are:\n{listed}"
        )
    return Upload(archive, len(packed), size)


def _code() -> dict[str, Path]:
    """The files of the packages by their path in the archive."""
    found = {}
    for package in PACKAGES:
        spec = find_spec(package)
        assert spec is not None and spec.origin is not None, package
        root = Path(spec.origin).parent
        for path in root.rglob("*"):
            if path.suffix in _CODE_SUFFIXES and path.is_file():
                found[f"{package}/{path.relative_to(root).as_posix()}"] = path
    return found


def _add(target: zipfile.ZipFile, name: str, content: bytes) -> None:
    info = zipfile.ZipInfo(name, _NO_TIME)
    info.external_attr = 0o644 << 16
    target.writestr(info, content, zipfile.ZIP_DEFLATED)
