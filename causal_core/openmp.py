"""How threads of one computation wait for each other on a machine that does other things, too.

torch's threads meet at the end of every operation, thousands of times per step. One that is done
spins before it sleeps, because to sleep and to be woken costs tens of microseconds. libgomp, the
OpenMP of torch's packages for Linux (MKL and oneDNN run on its threads as well), spins for
milliseconds; and where another program has the core of the thread that is waited for, it spins on
the time in which that thread could run. Beside one busy program with two threads a step was seen
to take five times as long then, where twice is fair; where threads always sleep at once it takes a
third longer with nothing beside it (docs/cpu.md).

So threads spin while they have their cores and sleep while they have not. Linux counts how long a
thread that could run was kept from a core. While that is much, idle threads are held ready: once
libgomp has more threads in a process than cores it lets each spin for 100 turns only, as its manual
says of GOMP_SPINCOUNT. Results do not change by it: the same threads compute the same parts.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")

# Turns of a loop around the processor's PAUSE. The first covers what Python does between two
# operations (half a millisecond); the second, where nobody can tell whether there are neighbours,
# about what a sleep and a wake-up cost, which is never worse than twice the best that could be
# known (Karlin, Li, Manasse and Owicki, 1991).
_LONG_SPINS, _SHORT_SPINS = "20000", "1000"

_TASKS = Path("/proc/self/task")
_PERIOD = 0.5  # seconds between two looks
# Shares of the time in which the average computing thread waited for a core.
_CROWDED, _ALONE = 0.1, 0.03
_LOOKS_ALONE = 4  # in a row, until threads spin again
_GRAIN = 32768  # elements of an operation that torch gives to one thread at least


def set_waiting() -> None:
    """Sets how long threads spin, in the environment of this process and of those that it starts.

    libgomp reads it once, when torch is imported; what the user has set stays.
    """
    if not any(name in os.environ for name in SETTINGS):
        os.environ[SETTINGS[0]] = _LONG_SPINS if _can_tell() else _SHORT_SPINS


def in_force() -> dict[str, str]:
    """What says in this process how threads wait, for processes on other machines."""
    return {name: os.environ[name] for name in SETTINGS if name in os.environ}


def watch_neighbours(threads: int, cores: int) -> None:
    """Lets this process's threads sleep at once for as long as others have their cores.

    Called again, for another number of threads, it forgets the one before. It does nothing where
    the user has said how threads wait, and where there is nobody to wait for or no way to tell.

    Args:
        threads: That torch computes with.
        cores: That this process may use.
    """
    global _watch
    if _watch is not None:
        _watch.end()
        _watch = None
    ours = in_force() == {SETTINGS[0]: _LONG_SPINS}
    if ours and threads > 1 and _can_tell():
        _watch = _Watch(threads, cores)


def _can_tell() -> bool:
    return sys.platform == "linux" and os.access("/proc/self/schedstat", os.R_OK)


def kept_waiting() -> dict[str, int]:
    """Nanoseconds for which each thread of this process could run and had no core, by its id."""
    found = {}
    for task in _TASKS.iterdir():
        with contextlib.suppress(OSError, IndexError):  # a thread may end at any time
            found[task.name] = int((task / "schedstat").read_text(encoding="ascii").split()[1])
    return found


class ShortSpins:
    """Threads that compute nothing, so many that libgomp counts more of them than cores."""

    def __init__(self, threads: int, cores: int) -> None:
        self._teams = max(1, math.ceil((cores + 1 - threads) / max(1, threads - 1)))
        self._elements = threads * _GRAIN
        self._over = threading.Event()
        self._holders: list[threading.Thread] = []

    @property
    def held(self) -> bool:
        return bool(self._holders)

    def hold(self) -> None:
        """Returns when all of them are there; where no more threads are allowed, those that are."""
        there = threading.Semaphore(0)
        for _ in range(self._teams):
            holder = threading.Thread(target=self._hold, args=(there.release,), daemon=True)
            try:
                holder.start()
            except RuntimeError:  # a limit on threads: to spin is slower, not wrong
                break
            self._holders.append(holder)
        for _ in self._holders:
            there.acquire()

    def _hold(self, ready: Callable[[], None]) -> None:
        import torch

        try:  # an operation of this thread's own team, which lives as long as the thread
            torch.zeros(self._elements).add_(1)
        finally:
            ready()
        self._over.wait()

    def release(self) -> None:
        """Returns when all of them are gone."""
        self._over.set()
        for holder in self._holders:
            holder.join()
        self._holders.clear()
        self._over.clear()


class Crowding:
    """Whether others have this process's cores, by what each look at its threads says."""

    def __init__(self) -> None:
        self.crowded = False
        self._looks_alone = 0

    def look(self, share: float) -> bool:
        """Crowded at once, alone after a while.

        Args:
            share: Of the time since the last look, in which the average thread waited for a core.
        """
        self._looks_alone = self._looks_alone + 1 if share < _ALONE else 0
        if share > _CROWDED:
            self.crowded = True
        elif self._looks_alone >= _LOOKS_ALONE:
            self.crowded = False
        return self.crowded


class _Watch:
    """Looks every half second whether this process's threads are kept from their cores."""

    def __init__(self, threads: int, cores: int) -> None:
        self._threads = threads
        self._short = ShortSpins(threads, cores)
        self._ended = threading.Event()
        self.thread = threading.Thread(target=self._run, name="neighbours", daemon=True)
        self.thread.start()

    def end(self) -> None:
        self._ended.set()
        self.thread.join()

    def _run(self) -> None:
        crowding = Crowding()
        before, since = kept_waiting(), time.monotonic()
        while not self._ended.wait(_PERIOD):
            now, at = kept_waiting(), time.monotonic()
            waited = sum(now[task] - before.get(task, now[task]) for task in now) / 1e9
            crowded = crowding.look(waited / (at - since) / self._threads)
            before, since = now, at
            if crowded and not self._short.held:
                self._short.hold()
            elif self._short.held and not crowded:
                self._short.release()
        if self._short.held:
            self._short.release()


_watch: _Watch | None = None


def _forget() -> None:
    """A forked process has none of its parent's threads."""
    global _watch
    _watch = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
