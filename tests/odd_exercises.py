"""The worker of exercises (`causal_core.run.exercise`) of which some are odd on one worker alone.

What is odd about an exercise is the first word of its name: `poisoned`, `unlike` or `uneven`; all
others are as they are. So one start of processes serves every kind.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from causal_core.run import exercise as exercise_module
from tests.poisoned_exercise import poison_last_worker
from tests.uneven_exercise import lengthen
from tests.unlike_exercise import begin_elsewhere

if __name__ == "__main__":
    job, rank = json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2])
    lengthen()
    if rank == job["workers"] - 1:
        poison_last_worker()
        begin_elsewhere(Path(job["directory"]) / "base.txt")
    exercise_module.run_worker(job, rank)
