"""One writer per run directory: two runs in one directory would spoil both.

The lock is a file that says which process writes. A process that is gone (kill -9, a reboot) cannot
hold it: the next call on the same machine takes over. What runs on another machine cannot be seen
from here, so there the user decides. It belongs to the process that began the run, not to its
workers: they may live on other machines, and they end with it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import stat
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from causal_core.errors import UserError
from causal_core.files import set_aside, writes_to
from causal_core.visible_text import shown

log = logging.getLogger(__name__)

LOCK = ".lock"
_LAST_PID = 2**31 - 1
_LONGEST = 255  # of a host's name


@dataclass(frozen=True)
class Writer:
    """A process, and what tells it from a later one with the same number."""

    pid: int
    host: str
    boot: str  # of the machine; empty where it does not tell
    started: str  # clock ticks from that boot to the process's start; empty likewise
    since: str  # when it took the lock, for people to read

    @classmethod
    def this_process(cls) -> Writer:
        pid, now = os.getpid(), datetime.now(UTC)
        return cls(pid, socket.gethostname(), _boot(), _started(pid), f"{now:%Y-%m-%d %H:%M} UTC")

    def is_gone(self) -> bool:
        """Whether the process surely ended; false on another machine."""
        if self.host != socket.gethostname():
            return False
        return self.boot != _boot() or not _exists(self.pid) or self.started != _started(self.pid)


@contextlib.contextmanager
def only_writer(
    directory: Path, *, fresh: bool = False, moved_by: str = "run.dir"
) -> Iterator[Path | None]:
    """Makes a run directory where there is none, and holds its lock for a `with` block.

    Args:
        fresh: First renames an existing directory (nothing is deleted) and begins a new one.
        moved_by: The setting or option that chooses another place.

    Yields:
        Where the earlier directory is now, with `fresh`.

    Raises:
        UserError: another process writes there.
        UnwritableError: the directory cannot be written.
    """
    moved = None
    with writes_to(directory, moved_by):
        made = not directory.exists()
        directory.mkdir(parents=True, exist_ok=True)
        try:
            _take(directory / LOCK, directory, moved_by)
        except OSError:
            _remove([directory] if made else [])
            raise
        if fresh and any(path.name != LOCK for path in directory.iterdir()):
            moved = set_aside(directory)
            assert moved is not None
            _release(moved / LOCK, moved_by)
            directory.mkdir()
            _take(directory / LOCK, directory, moved_by)
    try:
        yield moved
    finally:
        _release(directory / LOCK, moved_by)
        _remove([directory] if made else [])


@contextlib.contextmanager
def only_maker(place: Path, *, moved_by: str) -> Iterator[None]:
    """Holds the lock of a file or directory that is made, for a `with` block: `only_writer` for
    what is not there before it is whole. The lock lies beside it.

    Args:
        moved_by: The setting or option that chooses another place.

    Raises:
        UserError: another process makes it at this moment.
        UnwritableError: the directory around it cannot be written.
    """
    place = place.absolute()
    path = place.with_name(f".{place.name}{LOCK}") if place.name else place / LOCK
    around = [folder for folder in place.parents if not folder.exists()]
    with writes_to(place, moved_by):
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            _take(path, place, moved_by)
        except OSError:
            _remove(around)
            raise
    try:
        yield
    finally:
        _release(path, moved_by)
        _remove(around)


def _remove(made: Sequence[Path]) -> None:
    """Removes directories made for nothing, the innermost first: the input was refused, or there is
    no room."""
    with contextlib.suppress(OSError):
        for directory in made:
            directory.rmdir()


def _take(path: Path, place: Path, moved_by: str) -> None:
    with _opened(path, moved_by) as file:
        held = os.read(file, 4096)
        if held:
            _refuse_unless_gone(path, held, place, moved_by)
            os.ftruncate(file, 0)
        try:
            os.pwrite(file, json.dumps(asdict(Writer.this_process())).encode() + b"\n", 0)
        except OSError:  # no room: an empty lock would be all that is left of the command
            path.unlink(missing_ok=True)
            raise


def _release(path: Path, moved_by: str) -> None:
    """Removes this process's lock; a fork of it that ends leaves the lock alone."""
    if not path.exists():  # the directory was removed meanwhile
        return
    with _opened(path, moved_by) as file:
        content = os.read(file, 4096)
        holder = _parsed(content)
        if not content or (holder is not None and holder.pid == os.getpid()):
            path.unlink()


def _refuse_unless_gone(path: Path, held: bytes, place: Path, moved_by: str) -> None:
    holder = _parsed(held)
    if holder is not None and holder.is_gone():
        log.warning(
            "%s: process %d, which wrote there since %s, is gone: this one takes over",
            place, holder.pid, holder.since,
        )  # fmt: skip
        return
    if holder is None:
        raise UserError(
            f"{path} is damaged, so it does not say which process writes in {place}: if none "
            f"does, remove it (rm {path}) and run the same command again"
        )
    if holder.host == socket.gethostname():
        raise UserError(
            f"process {holder.pid} on this machine has been writing in {place} since "
            f"{holder.since}, and two writers would spoil it: wait for it, stop it (kill "
            f"{holder.pid}), or choose another place ({moved_by})"
        )
    raise UserError(
        f"process {holder.pid} on {shown(holder.host)} has been writing in {place} since "
        f"{holder.since}, and two writers would spoil it. Whether it still runs cannot be seen "
        f"from here ({socket.gethostname()}): if it does not, remove the lock (rm {path}) and run "
        f"the same command again; otherwise choose another place ({moved_by})"
    )


# What a run directory of another holds there may be a link to somewhere else, or a pipe.
_OPEN = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def _no_lock(path: Path, moved_by: str) -> UserError:
    return UserError(
        f"{path} is no regular file, so it cannot be the lock of this directory: remove it, or "
        f"choose another place ({moved_by})"
    )


@contextlib.contextmanager
def _opened(path: Path, moved_by: str) -> Iterator[int]:
    """The lock file, made if it is not there, for one process of this machine at a time."""
    while True:
        try:
            file = os.open(path, _OPEN, 0o644)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):  # the last: a socket
                raise _no_lock(path, moved_by) from None
            raise
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise _no_lock(path, moved_by)
            # Some network filesystems have no flock. Without it two processes that start within
            # the same milliseconds could both take the lock.
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(file, path):  # removed by its holder while this one waited
                continue
            yield file
            return
        finally:
            os.close(file)


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _parsed(content: bytes) -> Writer | None:
    try:
        raw = json.loads(content)
        # Shown to people: whoever wrote the file may have put anything there.
        since, host = shown(str(raw["since"])[:_LONGEST]), str(raw["host"])[:_LONGEST]
        writer = Writer(int(raw["pid"]), host, str(raw["boot"]), str(raw["started"]), since)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    return writer if 0 < writer.pid <= _LAST_PID else None


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        return True
    return True


def _boot() -> str:
    return _text(Path("/proc/sys/kernel/random/boot_id")).strip()


def _started(pid: int) -> str:
    """Field 22 of /proc/PID/stat; the name in field 2 may hold spaces and brackets."""
    fields = _text(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 else ""


def _text(path: Path) -> str:
    """What Linux says; empty on a system that has no such file."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
