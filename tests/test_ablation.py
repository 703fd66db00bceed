"""The ablation: every cell is a config that can be run, and its results are a table."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from benchmarks import ablation
from causal_core.data.leaks import check_leaks
from causal_core.data.reader import read_triplets
from causal_core.evaluation.statistics import wilson
from causal_core.loss.objective import TERMS, computed_terms

GIVEN = {"rows": [12, 12], "outside": [], "outside_rows": 5, "settings": []}


@pytest.fixture(autouse=True)
def answers_without_a_model(monkeypatch):
    """Open work answered by its own words, where the base would be loaded to answer it."""

    def own_answers(rows, config, subject, kept, max_new_tokens, progress):
        return {(r.system_instruction, r.benign_input): r.benign_input[:30] for r in rows}

    monkeypatch.setattr(ablation, "own_answers", own_answers)


def small(cell, rows):
    """The cell with fewer rows."""
    return {**cell, "rows": rows, **({"open_rows": 80} if "open_rows" in cell else {})}


@pytest.mark.parametrize("name", [name for name in ablation.cells() if name != ablation.BASE])
def test_a_cell_is_a_config_with_its_data(name, tmp_path):
    given = argparse.Namespace(directory=tmp_path, **GIVEN)
    cell = small(ablation.cells()[name], 12)
    config = ablation.config_of(name, cell, 0, tmp_path / "data", given)
    lines = Path(config.data.train[0]).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 12
    assert {len(row["injections"]) for row in rows} == {cell.get("attacks_per_row", 1)}
    kinds = {injection["payload"] for row in rows for injection in row["injections"]}
    assert kinds <= set(cell.get("payloads", ablation.PAYLOADS))
    assert set(config.data.test) == {"seen", "novel"}
    assert len(config.data.train) == (2 if "open_rows" in cell else 1)


def test_open_work_is_partly_attacked_and_fits_beside_the_test_sets(tmp_path):
    given = argparse.Namespace(directory=tmp_path, **GIVEN)
    cell = small(ablation.cells()["large"], 40)
    config = ablation.config_of("large", cell, 0, tmp_path / "data", given)
    generated, opened = (list(read_triplets(path).triplets()) for path in config.data.train)
    assert 0.3 < sum(bool(row.injections) for row in opened) / len(opened) < 0.5
    assert all(i.injection_output == r.benign_output for r in opened for i in r.injections)
    tested = [row for files in config.data.test.values() for row in read_triplets(files).triplets()]
    assert check_leaks({"train": [*generated, *opened], "test": tested}).ok


def test_every_term_is_in_some_cell(tmp_path):
    given = argparse.Namespace(directory=tmp_path, **GIVEN)
    used = set()
    for name, cell in ablation.cells().items():
        config = ablation.config_of(name, small(cell, 2), 0, tmp_path / "data", given)
        used |= {term.name for term in computed_terms(config.loss)}
    assert used == {term.name for term in TERMS}


def test_a_field_that_no_cell_has_is_refused(tmp_path, monkeypatch):
    (tmp_path / "cell.yaml").write_text("about: x\nrowz: 3\n")
    monkeypatch.setattr(ablation, "CELLS", tmp_path)
    with pytest.raises(SystemExit, match="rowz"):
        ablation.cells()


def result(cell, succeeded, **changes):
    figures = {column: wilson(3, 10).to_dict() for column in ablation._COLUMNS}
    return {
        "cell": cell, "seed": 0, "sizes": {"seen": 10}, "about": cell, "tokens": 1000,
        "train_seconds": 60, "evaluation_seconds": 30, "sets": {"seen": figures},
        "succeeded": {"seen": succeeded}, **changes,
    }  # fmt: skip


def test_a_cell_is_compared_with_the_control_that_its_file_names():
    every = [f"row-{n}" for n in range(10)]
    other, own = result("large_control", every), result("large", [], control="large_control")
    lines = ablation.table([result("task_only", []), other, own]).splitlines()
    assert "| 0.002 | 1,000 |" in lines[4]


def test_the_table_compares_with_the_control_row_by_row():
    control = result("task_only", [f"row-{n}" for n in range(10)])
    lines = ablation.table([control, result("robust", [])]).splitlines()
    assert len(lines) == 4 and lines[0].count("|") == lines[-1].count("|")
    assert "| - | 1,000 |" in lines[2] and "| 0.002 | 1,000 |" in lines[3]
    assert "30.0 [10.8, 60.3] %" in lines[3]
