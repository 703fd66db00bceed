"""Results that follow from their input, this code and its libraries alone, kept on disk.

What takes seconds to compute and nothing to look up again: the plan of a model's memory, say.
Another version of the code or of a library computes anew.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from causal_core.files import write_whole

log = logging.getLogger(__name__)

FOLDER = "remembered"  # in the cache
_LIBRARIES = (
    "torch", "transformers", "peft", "bitsandbytes",
    "tokenizers", "jinja2", "sentencepiece", "tiktoken",
)  # fmt: skip

T = TypeVar("T")


def remembered(
    cache: Path, of: Any, compute: Callable[[], Any], read: Callable[[Any], T] = lambda found: found
) -> T:
    """What `compute` gives for `of`, looked up where it was computed before.

    Args:
        of: All that the result depends on, besides code and libraries: plain values.
        compute: Gives plain values, as JSON has them.
        read: Makes the result of them; what it cannot understand (TypeError, ValueError, KeyError)
            is computed anew.
    """
    asked = json.dumps([_code(), of], sort_keys=True)
    entry = cache / FOLDER / f"{hashlib.sha256(asked.encode()).hexdigest()}.json"
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        return read(json.loads(entry.read_text(encoding="utf-8")))
    found = compute()
    try:
        write_whole(entry, json.dumps(found) + "\n")
    except OSError as error:  # a read-only cache costs the same seconds again
        log.info("what was computed is not kept: %s", error)
    return read(found)


@functools.cache
def _code() -> list[str]:
    """Identifies this package's code and the libraries that it computes with."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return [digest.hexdigest(), *(f"{name} {_version(name)}" for name in _LIBRARIES)]


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "none"
