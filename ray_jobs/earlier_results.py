"""Results that are there: none is replaced by mistake, by a smaller look or by a failure."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from causal_core.config import Config
from causal_core.config_sections import FLOAT32
from causal_core.errors import UserError
from causal_core.files import BEST, CONFIG, SUMMARY
from causal_core.report.recorded import read_summary
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


def refuse_rounded_record(run: Path, config: Config) -> None:
    """Refuses an evaluation that may be in bfloat16 in the place of a record that was not rounded.

    Args:
        config: Of the new evaluation.
    """
    asked = config.evaluated_products()
    earlier = read_summary(run, ended=True)["evaluation"]
    if earlier and asked != FLOAT32 and earlier.get("matmul", FLOAT32) == FLOAT32:
        raise UserError(
            f"the record of {shown(str(run))} is from products in float32, and evaluation.matmul="
            f"{asked} may round the new one's to bfloat16: causal evaluate --record with --set "
            "evaluation.matmul=float32, or with --force"
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
