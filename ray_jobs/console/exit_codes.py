"""Exit codes of every command: 0 ok, 1 the user's input, 2 usage, 3 the run failed."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn, TextIO

from causal_core.errors import RunFailedError, UnwritableError, UserError
from causal_core.files import CACHE_SETTING
from ray_jobs.console.answer import print_json_error
from ray_jobs.console.encoding import encode_anything
from ray_jobs.console.logs import say_error
from ray_jobs.console.plain import printable
from ray_jobs.stopping import sigterm_came, stopped_by_sigterm

# What it does, by its first words; train, demo and tune have checkpoints.
_GOES_ON: dict[tuple[str, ...], str] = {
    ("data", "targets"): "goes on from the answers that it has",
    ("attack",): "goes on from the levels that it has",
    **dict.fromkeys(
        [(name,) for name in ("data", "evaluate", "try", "export", "guard", "init", "plan")],
        "begins anew; nothing was left half written",
    ),
}

# Read-only, full, over a quota or a limit, not permitted, or no place by its name: whatever the
# program wanted there, the user can act.
_NO_PLACE = {errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM,
             errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR}  # fmt: skip
_MOVE_IT = (
    "Make room or give permission there, or choose another place: run.dir for the run, "
    f"{CACHE_SETTING} for the cache, checkpoint.storage for checkpoints, $TMPDIR for what is "
    "temporary"
)

OK, USER_INPUT, USAGE, RUN_FAILED, INTERRUPTED = 0, 1, 2, 3, 130


def exit_with_code(command: Callable[[], object]) -> NoReturn:
    """Runs a command and leaves the process with the code of its outcome."""
    encode_anything()
    code = _outcome(command)
    if (refusal := _refusal_of(sys.stdout)) is not None:
        _discard(sys.stdout)
        code = code or USER_INPUT
        if refusal.errno != errno.EPIPE:  # a reader that left (`| head`) has what it wanted
            reason = f"standard output cannot be written: {refusal.strerror}"
            say_error("error", UnwritableError(reason))
    sys.exit(code)


def _outcome(command: Callable[[], object]) -> int:
    try:
        with stopped_by_sigterm():
            command()
    except UserError as error:
        return _failed("error", error)
    except RunFailedError as error:
        return _failed("run failed", error)
    except KeyboardInterrupt:
        return _interrupted()
    except SystemExit as leaving:  # typer's way out: usage errors, --help, Ctrl-C
        if leaving.code == INTERRUPTED:
            return _interrupted()
        if not isinstance(leaving.code, int | None):
            raise
        return leaving.code or OK
    except OSError as error:
        if error.errno not in _NO_PLACE:
            return _unexpected()
        if error.filename is None and _refusal_of(sys.stdout, "\n") is not None:
            return USER_INPUT  # told at the end
        where = f"{error.filename}: " if error.filename else ""
        return _failed("error", UnwritableError(f"{where}{error.strerror}. {_MOVE_IT}"))
    except Exception:  # noqa: BLE001 - whatever it is, it is not the user's input
        return _unexpected()
    return OK


def _failed(kind: str, error: UserError | RunFailedError) -> int:
    say_error(kind, error)
    print_json_error(error)
    return USER_INPUT if isinstance(error, UserError) else RUN_FAILED


def _refusal_of(stream: TextIO, more: str = "") -> OSError | None:
    """Why what was printed, and `more`, does not arrive: Python would find out at its very end, in
    a trace. Of an unbuffered stream that refused something only `more` can tell."""
    try:
        stream.write(more)
        stream.flush()
    except OSError as error:
        return error
    except ValueError:  # closed by somebody
        return None
    return None


def _discard(stream: TextIO) -> None:
    """Sends what is left in a stream nowhere, as it has no place to go."""
    with contextlib.suppress(OSError, ValueError):
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, stream.fileno())
        os.close(sink)


def _interrupted() -> int:
    words = tuple(sys.argv[1:3])
    then = _GOES_ON.get(words) or _GOES_ON.get(words[:1]) or "continues from the last checkpoint"
    if sigterm_came():
        told = f"stopped as asked (SIGTERM); the same command {then}"
        return _failed("run failed", RunFailedError(told))
    print(f"interrupted; the same command {then}", file=sys.stderr)
    return INTERRUPTED


def _unexpected() -> int:
    print(printable(traceback.format_exc()), file=sys.stderr)
    print("run failed: unexpected error, see above", file=sys.stderr)
    print_json_error(RunFailedError("unexpected error, see stderr"))
    return RUN_FAILED
