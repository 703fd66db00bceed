"""Where the checkpoints of a run are kept: a local directory or any pyarrow filesystem.

`s3://`, `gs://`, `hdfs://` and `file://` locations work alike: a checkpoint is uploaded with its
manifest last and downloaded as a whole before it is read.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from causal_core.checkpoints.checkpoint import copy_checkpoint
from causal_core.checkpoints.contents import (
    MANIFEST,
    Manifest,
    read_manifest,
    verify_checkpoint,
)
from causal_core.checkpoints.state import MAX_JSON_BYTES
from causal_core.credentials import without_credentials
from causal_core.errors import DamagedCheckpointError, UserError
from causal_core.visible_text import quoted, shown

log = logging.getLogger(__name__)


class CheckpointStore:
    """The checkpoints below one location, by name (`step-00000040`)."""

    def __init__(self, location: str) -> None:
        self.location = location
        self._remote: fs.FileSystem | None = None
        self._root = location
        if "://" in location:
            try:
                self._remote, self._root = fs.FileSystem.from_uri(location)
            except (pa.ArrowException, ValueError, OSError) as error:
                raise UserError(
                    f"checkpoint.storage={shown(without_credentials(location))}: "
                    f"{quoted(str(error), 200)}"
                ) from None
        else:
            there = next(p for p in (Path(location), *Path(location).absolute().parents)
                         if p.exists())  # fmt: skip
            if not there.is_dir():
                raise UserError(
                    f"no checkpoint can be kept in {shown(location)}: {shown(str(there))} is no "
                    "directory; choose another place with checkpoint.storage or run.dir"
                )

    def names(self) -> list[str]:
        """Names of all checkpoints there, whole or not, oldest first."""
        if self._remote is None:
            folder = Path(self._root)
            found = [p.name for p in folder.glob("step-*")] if folder.is_dir() else []
        else:
            selector = fs.FileSelector(self._root, allow_not_found=True)
            infos = self._remote.get_file_info(selector)
            found = [i.base_name for i in infos if i.base_name.startswith("step-")]
        return sorted(found)

    @contextlib.contextmanager
    def newest_whole(self, fits: Callable[[Path], object] | None = None) -> Iterator[Path | None]:
        """The newest checkpoint that verifies, as a local directory for the `with` block.

        Damaged ones are skipped with a warning that says why; None when there is none.

        Args:
            fits: Called with a checkpoint that verifies; raises `DamagedCheckpointError` where it
                cannot be one of the run that asks.

        Raises:
            NewerFormatError: the newest whole one was written by a newer version; starting over
                beside it would throw its work away.
            DamagedCheckpointError: some verify and none fits, for the same reason.
        """
        unfit: DamagedCheckpointError | None = None
        with contextlib.ExitStack() as stack:
            for name in reversed(self.names()):
                verified = False
                try:
                    directory = stack.enter_context(self._local(name))
                    verify_checkpoint(directory)
                    verified = True
                    if fits is not None:
                        fits(directory)
                except DamagedCheckpointError as error:
                    log.warning("skipping a damaged checkpoint: %s", error)
                    if verified:
                        unfit = unfit or error
                else:
                    yield directory
                    return
            if unfit is not None:
                raise unfit
            yield None

    @contextlib.contextmanager
    def all_whole(self) -> Iterator[list[tuple[Path, Manifest]]]:
        """Every checkpoint that verifies, oldest first, as local directories for the `with` block.

        Damaged ones are left out with a warning that says why.

        Raises:
            NewerFormatError: one was written by a newer version.
        """
        found = []
        with contextlib.ExitStack() as stack:
            for name in self.names():
                try:
                    directory = stack.enter_context(self._local(name))
                    found.append((directory, verify_checkpoint(directory)))
                except DamagedCheckpointError as error:
                    log.warning("leaving out a damaged checkpoint: %s", error)
            yield found

    def put(self, directory: Path, name: str) -> None:
        """Stores a finished local checkpoint under `name`; it appears whole or not at all."""
        if self._remote is None:
            Path(self._root).mkdir(parents=True, exist_ok=True)
            copy_checkpoint(directory, Path(self._root) / name)
            return
        target = f"{self._root}/{name}"
        self._remote.create_dir(target, recursive=True)
        # What an earlier, interrupted run left under this name must not look whole meanwhile.
        if self._remote.get_file_info(f"{target}/{MANIFEST}").type != fs.FileType.NotFound:
            self._remote.delete_file(f"{target}/{MANIFEST}")
        files = sorted(directory.iterdir(), key=lambda p: p.name == MANIFEST)
        for file in files:
            fs.copy_files(
                str(file),
                f"{target}/{file.name}",
                source_filesystem=fs.LocalFileSystem(),
                destination_filesystem=self._remote,
            )

    def keep_last(self, count: int, newest: str | None = None) -> None:
        """Removes all but the newest `count` checkpoints.

        Args:
            newest: The one just stored. Damaged ones beyond it, from which the run did not resume,
                take no place among those that are kept.
        """
        names = [name for name in self.names() if newest is None or name <= newest]
        for name in names[:-count]:
            if self._remote is None:
                _remove(Path(self._root) / name)
            else:
                self._remote.delete_dir(f"{self._root}/{name}")

    @contextlib.contextmanager
    def _local(self, name: str) -> Iterator[Path]:
        if self._remote is None:
            yield Path(self._root) / name
            return
        with tempfile.TemporaryDirectory(prefix="causal-fetch-") as folder:
            target = Path(folder) / name
            target.mkdir()
            self._fetch(self._remote, name, target)
            yield target

    def _fetch(self, remote: fs.FileSystem, name: str, target: Path) -> None:
        """Downloads a manifest and what it lists, each file only if it has the size listed there.

        Raises:
            DamagedCheckpointError: a file is of another size, or too large to be what it should.
            UserError: there is no room for what is listed.
        """
        source = f"{self._root}/{name}"
        found = remote.get_file_info(fs.FileSelector(source))
        sizes = {info.base_name: info.size for info in found if info.type == fs.FileType.File}

        def copy(file: str) -> None:
            fs.copy_files(
                f"{source}/{file}",
                str(target / file),
                source_filesystem=remote,
                destination_filesystem=fs.LocalFileSystem(),
            )

        if sizes.get(MANIFEST, 0) > MAX_JSON_BYTES:
            raise DamagedCheckpointError(
                f"{shown(name)}: {MANIFEST} has {sizes[MANIFEST]:,} bytes, no manifest has more "
                f"than {MAX_JSON_BYTES:,}"
            )
        if MANIFEST in sizes:
            copy(MANIFEST)
        listed = read_manifest(target).files
        for file, expected in listed.items():
            if sizes.get(file) != expected.bytes:
                there = f"has {sizes[file]:,} bytes" if file in sizes else "is missing"
                raise DamagedCheckpointError(
                    f"{shown(name)}: {shown(file)} {there}, the manifest says {expected.bytes:,}"
                )
        needed, free = sum(e.bytes for e in listed.values()), shutil.disk_usage(target).free
        if needed > free:
            raise UserError(
                f"checkpoint {shown(name)} has {needed:,} bytes and {tempfile.gettempdir()}, where "
                f"it is downloaded to, has room for {free:,}: make room there, or choose another "
                "place with $TMPDIR"
            )
        for file in listed:
            copy(file)


def checkpoint_location(run_directory: Path, storage: str | None) -> str:
    """Where a run's checkpoints are: below its directory, or below `checkpoint.storage`."""
    if storage is None:
        return str(run_directory / "checkpoints")
    return f"{storage.rstrip('/')}/checkpoints"


def _remove(checkpoint: Path) -> None:
    """Deletes a checkpoint, its manifest first: what is left of an interrupted delete is none."""
    if checkpoint.is_symlink() or not checkpoint.is_dir():  # a pipe would be waited for
        checkpoint.unlink(missing_ok=True)
        return
    (checkpoint / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)
