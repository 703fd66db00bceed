"""Results that are there: none is replaced by mistake, by a smaller look or by a failure."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from causal_core.errors import UserError
from causal_core.files import BEST, CONFIG, SUMMARY
from causal_core.run.lock import only_writer
from causal_core.visible_text import shown


def refuse_directory_of_a_run(place: Path, instead: str) -> None:
    """Refuses results in what is a run's own directory, its best model or a checkpoint.

    Args:
        instead: What to do, for the message.
    """
    for name in (CONFIG, BEST, SUMMARY):
        if (place / name).exists():
            raise UserError(
                f"{shown(str(place))} is the directory of a run (it has {name}), whose files would "
                f"be replaced: {instead}"
            )


@contextlib.contextmanager
def replacing(place: Path, earlier: bool) -> Iterator[None]:
    """Holds the lock of a directory of results; earlier ones are set aside for the `with` block.

    They go when it ends, and come back when it fails. Should the process be killed, they are whole
    beside the new ones, under the name with a number.

    Args:
        earlier: Whether there are any.
    """
    with only_writer(place, fresh=earlier, moved_by="--out") as aside:
        try:
            yield
        except BaseException:
            if aside is not None:
                shutil.rmtree(place, ignore_errors=True)
                aside.rename(place)
            raise
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)
