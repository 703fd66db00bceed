"""Whether the model hub can be reached: asked once in a process, and answered within seconds.

The hub's own client tries each file six times, with growing waits between: where there is no
network, a command would be silent for a minute before it says so.
"""

from __future__ import annotations

import functools
import os
import queue
import threading
from pathlib import Path

from causal_core.errors import UserError
from causal_core.visible_text import quoted, shown

_SECONDS = 5.0  # for one answer of a few bytes
_SETTING = "HF_HUB_ETAG_TIMEOUT"  # the hub's own, for the same kind of question


def ask_hub(source: str) -> None:
    """Lets the hub's client take what is in its cache, and wait for nothing, where the hub does not
    answer. Nothing is asked for a local directory, or where HF_HUB_OFFLINE is set.

    Args:
        source: What a library is about to load: a directory or a hub id.
    """
    if Path(source).is_dir():
        return
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE:
        _silence(constants.ENDPOINT)


def check_hub() -> None:
    """Refuses an upload that cannot arrive, before the work that it is of.

    Raises:
        UserError: the hub does not answer, or must not be asked.
    """
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE:
        _silence(constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE:
        why, do = _why_not(constants.ENDPOINT)
        raise UserError(f"nothing can be uploaded: {why}. {do}, or upload the directory later")


def hub_refused(source: str) -> str | None:
    """Why a library was not given what it asked for, and what to do; None where the hub was asked.

    Args:
        source: What was loaded, after `ask_hub`.
    """
    if Path(source).is_dir():
        return None
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE:
        return None
    why, do = _why_not(constants.ENDPOINT)
    return (
        f"{why}, and the hub's cache {shown(str(constants.HF_HUB_CACHE))} does not have it. {do}, "
        f"fetch it where there is a network (hf download {shown(source)}), or give a local "
        "directory."
    )


def _why_not(endpoint: str) -> tuple[str, str]:
    """Why the hub is not asked, and what to do about that."""
    if (silence := _found.get(endpoint)) is None:
        return "HF_HUB_OFFLINE is set", "Unset it"
    return (
        f"{shown(endpoint)} does not answer ({silence})",
        "Look at the network and its proxy (HTTPS_PROXY, HF_ENDPOINT)",
    )


_found: dict[str, str] = {}  # what was wrong with an endpoint that did not answer


@functools.cache
def _silence(endpoint: str) -> None:
    from huggingface_hub import constants

    if (reason := _asked(endpoint)) is not None:
        _found[endpoint] = reason
        # What the variable of this name sets when the library is imported; it looks here each time.
        constants.HF_HUB_OFFLINE = True


def _asked(endpoint: str) -> str | None:
    """Why an endpoint gives no answer; None where it gives one, whatever that is."""
    from huggingface_hub.utils import get_session

    seconds = _seconds()
    answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def ask() -> None:
        try:
            get_session().head(endpoint, timeout=seconds)
        except Exception as error:  # noqa: BLE001 - of whatever library the hub's client is made of
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            answers.put(quoted(said, 200)[1:-1])
        else:
            answers.put(None)

    # In a thread: no time limit of a client holds for the look-up of a name, nor for an answer that
    # trickles in.
    threading.Thread(target=ask, name="hub", daemon=True).start()
    try:
        return answers.get(timeout=seconds)
    except queue.Empty:
        return f"nothing within {seconds:g} s"


def _seconds() -> float:
    try:
        return max(1.0, float(os.environ.get(_SETTING) or _SECONDS))
    except ValueError:
        return _SECONDS
