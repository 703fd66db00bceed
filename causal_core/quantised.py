"""bitsandbytes without torch's compiler, until something is compiled.

At its import the library decorates a few functions of its own with `torch.compile`, which imports
the compiler at once: two seconds for functions that a plan never calls, nor most runs. Here each is
compiled when it is first called.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

LIBRARY = "bitsandbytes"


def bitsandbytes() -> Any:
    """The module, imported where it was not.

    Raises:
        ImportError: it is not installed.
    """
    with _compiled_late():
        return importlib.import_module(LIBRARY)


@contextmanager
def _compiled_late() -> Iterator[None]:
    """In this block `torch.compile` decorates without compiling anything yet."""
    at_once = torch.compile

    def late(function: Callable[..., Any] | None = None, **options: Any) -> Any:
        if function is None:
            return functools.partial(late, **options)
        compiled: list[Callable[..., Any]] = []

        @functools.wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            if not compiled:
                compiled.append(at_once(function, **options))
            return compiled[0](*args, **kwargs)

        return called

    torch.compile = late  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = at_once
