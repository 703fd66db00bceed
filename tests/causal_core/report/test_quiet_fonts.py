"""Of all that matplotlib may warn of, the report drops what is about its cache of fonts."""

from __future__ import annotations

import os
import subprocess
import sys

DRAW = """
import logging
import causal_core.report.charts, matplotlib.font_manager
logging.getLogger("matplotlib").warning("an odd colour")
logging.getLogger("matplotlib.font_manager").warning("no such font")
"""


def test_a_home_that_cannot_be_written_is_no_warning_and_all_else_stays_one():
    own = {"MPLCONFIGDIR": os.devnull + "/matplotlib"}
    done = subprocess.run(
        [sys.executable, "-c", DRAW],
        env={**os.environ, **own}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == ["an odd colour", "no such font"]
