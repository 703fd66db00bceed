"""Exit codes of every command: 0 ok, 1 the user's input, 2 usage, 3 the run failed."""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from causal_core.errors import RunFailedError, UnwritableError, UserError
from causal_core.files import CACHE_SETTING
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


def exit_with_code(command: Callable[[], object]) -> None:
    """Runs a command and leaves the process with the code of its outcome."""
    encode_anything()
    try:
        with stopped_by_sigterm():
            command()
    except UserError as error:
        say_error("error", error)
        sys.exit(USER_INPUT)
    except RunFailedError as error:
        say_error("run failed", error)
        sys.exit(RUN_FAILED)
    except KeyboardInterrupt:
        _interrupted()
    except SystemExit as leaving:  # typer's way out: usage errors, --help, Ctrl-C
        if leaving.code == INTERRUPTED:
            _interrupted()
        raise
    except OSError as error:
        if error.errno not in _NO_PLACE:
            _unexpected()
        where = f"{error.filename}: " if error.filename else ""
        say_error("error", UnwritableError(f"{where}{error.strerror}. {_MOVE_IT}"))
        sys.exit(USER_INPUT)
    except Exception:  # noqa: BLE001 - whatever it is, it is not the user's input
        _unexpected()
    sys.exit(OK)


def _interrupted() -> NoReturn:
    words = tuple(sys.argv[1:3])
    then = _GOES_ON.get(words) or _GOES_ON.get(words[:1]) or "continues from the last checkpoint"
    if sigterm_came():
        told = f"stopped as asked (SIGTERM); the same command {then}"
        say_error("run failed", RunFailedError(told))
        sys.exit(RUN_FAILED)
    print(f"interrupted; the same command {then}", file=sys.stderr)
    sys.exit(INTERRUPTED)


def _unexpected() -> NoReturn:
    print(printable(traceback.format_exc()), file=sys.stderr)
    print("run failed: unexpected error, see above", file=sys.stderr)
    sys.exit(RUN_FAILED)
