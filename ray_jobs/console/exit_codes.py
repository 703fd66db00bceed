"""Exit codes of every command: 0 ok, 1 the user's input, 2 usage, 3 the run failed."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable

from causal_core.errors import RunFailedError, UserError
from ray_jobs.console.logs import say_error

_INTERRUPTED_HINT = "interrupted; the same command continues from the last checkpoint"

OK, USER_INPUT, USAGE, RUN_FAILED, INTERRUPTED = 0, 1, 2, 3, 130


def exit_with_code(command: Callable[[], object]) -> None:
    """Runs a command and leaves the process with the code of its outcome."""
    try:
        command()
    except UserError as error:
        say_error("error", error)
        sys.exit(USER_INPUT)
    except RunFailedError as error:
        say_error("run failed", error)
        sys.exit(RUN_FAILED)
    except KeyboardInterrupt:
        print(_INTERRUPTED_HINT, file=sys.stderr)
        sys.exit(INTERRUPTED)
    except SystemExit as leaving:  # typer's way out: usage errors, --help, Ctrl-C
        if leaving.code == INTERRUPTED:
            print(_INTERRUPTED_HINT, file=sys.stderr)
        raise
    except Exception:  # noqa: BLE001 - whatever it is, it is not the user's input
        traceback.print_exc()
        print("run failed: unexpected error, see above", file=sys.stderr)
        sys.exit(RUN_FAILED)
    sys.exit(OK)
