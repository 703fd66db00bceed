"""The list of deliberate bugs stays current; `make mutants` runs the tests against each."""

from __future__ import annotations

from pathlib import Path

from tests.mutants import MUTANTS, Mutant

REPOSITORY = Path(__file__).resolve().parents[1]


def test_every_mutant_still_applies():
    problems = [problem for mutant in MUTANTS if (problem := mutant.problem(REPOSITORY))]
    assert not problems, "\n".join(problems)
    assert len({(m.file, m.original, m.replacement) for m in MUTANTS}) == len(MUTANTS) >= 60


def test_a_mutant_whose_text_is_gone_or_there_twice_is_refused(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_a.py").touch()
    (tmp_path / "a.py").write_text("x = 1\ny = 1\n")
    tests = ("tests/test_a.py",)
    assert Mutant("a.py", "x = 1", "x = 2", tests).problem(tmp_path) is None
    assert "0 times" in Mutant("a.py", "z = 1", "z = 2", tests).problem(tmp_path)
    assert "2 times" in Mutant("a.py", "= 1", "= 2", tests).problem(tmp_path)
    assert "test_b" in Mutant("a.py", "x = 1", "x = 2", ("tests/test_b.py",)).problem(tmp_path)
    assert "changes nothing" in Mutant("a.py", "x = 1", "x = 1", tests).problem(tmp_path)
