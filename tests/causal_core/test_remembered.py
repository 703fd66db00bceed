"""What was computed once is looked up, and nothing else is."""

from __future__ import annotations

import pytest

from causal_core import remembered as module
from causal_core.remembered import FOLDER, remembered


def twice(number):
    return lambda: {"value": 2 * number}


def never():
    raise AssertionError("computed again")


def test_a_result_is_computed_once_for_its_input(tmp_path):
    assert remembered(tmp_path, ["twice", 3], twice(3)) == {"value": 6}
    assert remembered(tmp_path, ["twice", 3], never) == {"value": 6}
    with pytest.raises(AssertionError, match="computed again"):
        remembered(tmp_path, ["twice", 4], never)


def test_other_code_computes_anew(tmp_path, monkeypatch):
    remembered(tmp_path, 3, twice(3))
    monkeypatch.setattr(module, "_code", lambda: ["of another version"])
    with pytest.raises(AssertionError, match="computed again"):
        remembered(tmp_path, 3, never)


@pytest.mark.parametrize("damaged", ["", "{", '{"other": 1}', "[]", "null"])
def test_what_cannot_be_understood_is_computed_anew(tmp_path, damaged):
    remembered(tmp_path, 3, twice(3))
    (entry,) = (tmp_path / FOLDER).iterdir()
    entry.write_text(damaged)
    assert remembered(tmp_path, 3, twice(3), lambda found: int(found["value"])) == 6


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(tmp_path):
    (tmp_path / FOLDER).touch()  # a file where its directory should be
    assert remembered(tmp_path, 3, twice(3)) == {"value": 6}
