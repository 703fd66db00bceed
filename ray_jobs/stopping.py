"""SIGTERM to a command: it leaves as after Ctrl-C, so that what it began is tidied up.

Python's own way is to die on the spot, and Ray's to abort with the addresses of its stack. A
training run does better, and saves first (`training.trainer.fit`).
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

_came = False


def sigterm_came() -> bool:
    """Whether the last Ctrl-C was SIGTERM."""
    return _came


@contextlib.contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM raises `KeyboardInterrupt` where the main thread is, during a `with` block.

    No exception of its own kind: of those that a signal raises within a call, Ray lets this one
    alone through.
    """
    global _came
    _came = False
    with sigterm_as_it_is():
        if _is_main():
            signal.signal(signal.SIGTERM, _interrupt)
        yield


@contextlib.contextmanager
def sigterm_as_it_is() -> Iterator[None]:
    """What SIGTERM did before a `with` block it does after it, whatever a library sets inside.

    A way of the operating system's that no Python function stands for is the library's to keep.
    """
    if not _is_main():  # signals reach the main thread only
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    global _came
    _came = True
    raise KeyboardInterrupt
