"""Refuses a chat template that takes endless time or memory, before it is rendered in this process.

Templates are programs of others: they multiply strings and nest loops. Nothing within a process
stops what a single operation of the interpreter does, so a process of its own tries them first.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from causal_core.errors import ModelError
from causal_core.tokens import template_child as child
from causal_core.visible_text import shown

# Of the clock, where processor time is not limited, or a template waits. Long, because a machine
# that does other things is no fault of a template.
_MOST_SECONDS_IN_ALL = 60
_FILE, _OLDER_FILE = "chat_template.jinja", "tokenizer_config.json"
_TOO_LONG = f"takes more than {child.MOST_SECONDS} s of processor time for a few short messages"
_FOUND = {
    child.TOO_MUCH_MEMORY: f"takes more than {child.MOST_BYTES // 2**30} GiB of memory for a few "
    "short messages",
    child.TOO_MUCH_TEXT: f"writes more than {child.MOST_CHARACTERS:,} characters around a few "
    "short messages",
}


def refuse_endless_template(
    tokenizer: Any,
    source: str,
    variables: Mapping[str, Any],
    chats: Sequence[tuple[Sequence[Mapping[str, str]], bool]],
) -> None:
    """Renders a template around conversations in a process that is stopped where it goes too far.

    Args:
        tokenizer: Whose template it is.
        variables: What the template is given besides the messages.
        chats: Messages, and whether they are open for an answer.

    Raises:
        ModelError: it takes too much time or memory, or writes too much; with the file it is in.
    """
    asked = {
        "source": source,
        "variables": {**getattr(tokenizer, "special_tokens_map", {}), **variables},
        "chats": chats,
    }
    if (problem := _tried(json.dumps(asked, default=str))) is not None:
        raise ModelError(
            f"{_place(tokenizer)}: the chat template {problem}: it is broken or hostile; use a "
            "model from a source that you trust, or put the template of its publisher in its place"
        )


@functools.lru_cache(maxsize=64)
def _tried(asked: str) -> str | None:
    """What is wrong with a template, or None."""
    try:
        ended = subprocess.run(  # noqa: S603 - our own file
            [sys.executable, "-P", child.__file__],
            input=asked,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            timeout=_MOST_SECONDS_IN_ALL,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return _TOO_LONG
    said = (ended.stdout.splitlines() or [""])[-1]
    if ended.returncode == 0:
        return _FOUND.get(said)
    if ended.returncode in _signals("SIGXCPU"):
        return _TOO_LONG
    if "MemoryError" in ended.stderr or ended.returncode in _signals("SIGKILL"):
        return _FOUND[child.TOO_MUCH_MEMORY]
    reason = (ended.stderr.strip().splitlines() or [f"status {ended.returncode}"])[-1]
    return f"ends the interpreter that renders it ({shown(reason[:200])})"


def _signals(name: str) -> tuple[int, ...]:
    return (-getattr(signal, name),) if hasattr(signal, name) else ()


def _place(tokenizer: Any) -> str:
    """The file of a tokenizer's template, as far as it is known."""
    folder = Path(str(getattr(tokenizer, "name_or_path", "")))
    older = folder.is_dir() and not (folder / _FILE).is_file()
    return shown(str(folder / (_OLDER_FILE if older else _FILE)))
