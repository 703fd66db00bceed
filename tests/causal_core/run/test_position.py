"""What a run counts: steps, those that were skipped, and when too many were skipped in a row."""

from __future__ import annotations

import pytest

from causal_core.errors import RunFailedError
from causal_core.run.position import Position
from tests.tiny import random_triplets

BATCH = random_triplets(2, seed=0)


def test_skipped_steps_count_and_one_that_moved_ends_their_row():
    position = Position()
    for applied in (True, False, False, True, False, False):
        position.advance(applied, BATCH, max_skipped=2)
    assert (position.step, position.skipped, position.skipped_in_a_row) == (6, 4, 2)


def test_more_in_a_row_than_allowed_end_the_run_and_name_the_batch():
    position = Position()
    position.advance(False, BATCH, max_skipped=1)
    with pytest.raises(RunFailedError, match=r"2 optimizer steps in a row.*'t0', 't1'"):
        position.advance(False, BATCH, max_skipped=1)
