"""What every fuzzed input is held to: an answer, in time, in little memory, nothing beside it."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from causal_core.errors import UserError

SECONDS_EACH = 30  # of a core
MOST_GROWTH = 500 * 2**20
_RUNS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pty.spawn")
_CHANGES = (
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
)


@dataclass
class Watch:
    """Counts of one campaign; what is not allowed is told with the seed that makes it."""

    folder: Path
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    growth: int = 0
    seconds: float = 0.0

    def campaign(self, name: str, count: int, one: Callable[[random.Random], str]) -> None:
        """Calls `one` with `count` generators; it returns what became of its input."""
        began, before = time.process_time(), _resident()
        with _memory_watched(self, before), _guarded(self):
            for number in range(count):
                rng = random.Random(f"{name}/{number}")
                with _bounded_time():
                    try:
                        self.outcomes[one(rng)] += 1
                    except UserError as error:
                        self.outcomes["refused"] += 1
                        self._check(name, number, str(error))
                    except Exception as error:  # noqa: BLE001 - a traceback, which no user may see
                        self.failures.append(
                            f"{name}/{number}: {type(error).__name__}: {error}"[:500]
                        )
        self.seconds = time.process_time() - began
        told = ", ".join(f"{count} {what}" for what, count in sorted(self.outcomes.items()))
        print(f"\n{name}: {count} inputs: {told}; {len(self.failures)} tracebacks, "
              f"{self.growth / 2**20:.0f} MiB of growth, "
              f"{self.seconds:.1f} s of a core")  # fmt: skip

    def _check(self, name: str, number: int, said: str) -> None:
        odd = [c for c in said if not c.isprintable() and c != "\n"]
        if odd or len(said) > 20_000 or "secret@" in said:
            self.failures.append(
                f"{name}/{number}: a message that is not fit to print: {said!r}"[:500]
            )

    def assert_calm(self) -> None:
        """No traceback, nothing executed or written elsewhere, memory within its bound."""
        assert not self.failures, "\n".join(self.failures[:5])
        assert self.growth < MOST_GROWTH, f"{self.growth / 2**20:.0f} MiB"


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def _memory_watched(watch: Watch, before: int):
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.02):
            watch.growth = max(watch.growth, _resident() - before)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    yield
    over.set()
    thread.join()


@contextmanager
def _bounded_time():
    """Bounds what an input may compute. What waits for ever ends at the time limit of the test,
    whose own alarm this leaves alone; other programs on the machine enter into neither."""

    def too_long(*_: object) -> None:
        raise TimeoutError(f"no answer in {SECONDS_EACH} s of a core")

    signal.signal(signal.SIGPROF, too_long)
    signal.setitimer(signal.ITIMER_PROF, SECONDS_EACH)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


_guards: list[Watch] = []
_main = threading.main_thread()


def _audit(event: str, arguments: tuple) -> None:
    if not _guards or threading.current_thread() is not _main:
        return
    watch = _guards[-1]
    if event in _RUNS or event.startswith("os.exec"):
        watch.failures.append(f"executed: {event} {arguments!r}"[:300])
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & 0b11
    if (writes or event in _CHANGES) and isinstance(arguments[0], str | bytes):
        path = Path(os.fsdecode(arguments[0])).absolute()
        if watch.folder not in (path, *path.parents) and "/__pycache__/" not in str(path):
            watch.failures.append(f"written outside: {event} {path}"[:300])


@contextmanager
def _guarded(watch: Watch):
    if not _guarded_once:
        sys.addaudithook(_audit)  # cannot be removed again, so it is added once
        _guarded_once.append(True)
    _guards.append(watch)
    try:
        yield
    finally:
        _guards.pop()


_guarded_once: list[bool] = []
