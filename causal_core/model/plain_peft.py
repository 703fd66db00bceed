"""PEFT without bitsandbytes, for a base that has none of its layers.

PEFT imports bitsandbytes wherever it is installed: seconds of every start (it brings torch's
compiler), for layers that only a quantised base has.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_LIBRARY = "bitsandbytes"


@contextmanager
def without_bitsandbytes(base: Any) -> Iterator[None]:
    """In this block PEFT takes bitsandbytes for not installed, unless `base` is quantised or
    something has imported the library already."""
    if getattr(base, "is_quantized", False) or _LIBRARY in sys.modules:
        yield
        return
    sys.modules[_LIBRARY] = None  # type: ignore[assignment]  # how Python says: there is none
    try:
        yield
    finally:
        del sys.modules[_LIBRARY]
        _look_again()


def _look_again() -> None:
    """Forgets PEFT's answer, which it keeps for the whole process: the next base may differ."""
    from peft import import_utils

    for asked in (import_utils.is_bnb_available, import_utils.is_bnb_4bit_available):
        asked.cache_clear()
