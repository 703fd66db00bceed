"""The ablation: every cell is a config that can be run, and its results are a table."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import ablation
from benchmarks.ablation_table import COLUMNS, left_out_table, table
from causal_core.data.leaks import check_leaks
from causal_core.data.reader import read_triplets
from causal_core.evaluation.representations import HEAD, MEAN
from causal_core.evaluation.statistics import wilson
from causal_core.generator.families import families_of
from causal_core.generator.generate import generate_split
from causal_core.loss.objective import TERMS, computed_terms
from tests.tiny_run import tiny_config

GIVEN = {
    "rows": [12, 12], "outside": [], "outside_rows": 5, "left_out_rows": 7, "settings": []
}  # fmt: skip


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
    assert config.train.matmul == "float32"  # whatever the demo's own config asks for
    lines = Path(config.data.train[0]).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 12
    assert {len(row["injections"]) for row in rows} == {cell.get("attacks_per_row", 1)}
    kinds = {injection["payload"] for row in rows for injection in row["injections"]}
    assert kinds <= set(cell.get("payloads", ablation.PAYLOADS))
    assert set(config.data.test) == {"seen", "novel", *ablation.left_out_groups(name, cell)}
    assert config.data.fresh_attacks == cell.get("fresh_attacks", False)
    assert config.train.epochs == cell.get("epochs", 1)
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


def triplets(files):
    return list(read_triplets(files).triplets())


WITHOUT = {k: v for k, v in ablation.cells().items() if "without_families" in v}


def test_the_groups_left_out_are_all_families_of_training():
    groups = [family for cell in WITHOUT.values() for family in cell["without_families"]]
    assert sorted(groups) == sorted(family.name for family in families_of("train"))


@pytest.mark.parametrize("name", WITHOUT)
def test_a_family_left_out_is_in_no_training_row_and_alone_in_its_test_set(name, tmp_path):
    given = argparse.Namespace(directory=tmp_path, **GIVEN)
    cell, whole = small(WITHOUT[name], 60), small(ablation.cells()["left_out_default"], 60)
    config = ablation.config_of(name, cell, 0, tmp_path / "data", given)
    reference = ablation.config_of("whole", whole, 0, tmp_path / "data", given)
    without = set(cell["without_families"])
    rows, full = triplets(config.data.train), triplets(reference.data.train)
    kept = {family.name for family in families_of("train")} - without
    assert {row.only.attack_family for row in rows} == kept
    for row, other in zip(rows, full, strict=True):
        if other.only.attack_family in without:
            same = ("position", "payload", "witness", "attack_output")
            assert all(getattr(row.only, k) == getattr(other.only, k) for k in same)
            other = replace(other, injections=row.injections)
        assert row == other
    [group] = ablation.left_out_groups(name, cell)
    tested = triplets(config.data.test[group])
    assert len(tested) == 7 and {row.only.attack_family for row in tested} == without
    # What it is compared with is judged on the same file, and no row is in two of its test sets.
    assert config.data.test[group] == reference.data.test[group]
    ids = [row.id for files in reference.data.test.values() for row in triplets(files)]
    assert len(ids) == len(set(ids)) == 12 + 12 + 7 * len(WITHOUT)
    assert check_leaks({"train": rows, "test": tested}).ok


def test_a_family_that_training_does_not_have_cannot_be_left_out():
    for without, reason in (
        (["role_play"], "train has no attack family role_play to leave out; it has encoding"),
        ([family.name for family in families_of("train")], "every attack family"),
    ):
        with pytest.raises(ValueError, match=reason):
            next(generate_split("train", 2, 0, without=without))


def test_a_cell_without_families_has_the_name_of_a_group(tmp_path, monkeypatch):
    (tmp_path / "social.yaml").write_text("about: x\nwithout_families: [social]\n")
    monkeypatch.setattr(ablation, "CELLS", tmp_path)
    with pytest.raises(SystemExit, match="without_GROUP"):
        ablation.cells()


def result(cell, succeeded, **changes):
    figures = {column: wilson(3, 10).to_dict() for column in COLUMNS}
    return {
        "cell": cell, "seed": 0, "sizes": {"seen": 10}, "about": cell, "tokens": 1000,
        "train_seconds": 60, "evaluation_seconds": 30, "sets": {"seen": figures},
        "succeeded": {"seen": succeeded}, **changes,
    }  # fmt: skip


EVERY = [f"row-{n}" for n in range(10)]


def test_a_cell_is_compared_with_the_control_that_its_file_names():
    other, own = result("large_control", EVERY), result("large", [], control="large_control")
    lines = table([result("task_only", []), other, own]).splitlines()
    assert "| 0.002 | large_control |" in lines[4]


def test_the_table_compares_with_the_control_row_by_row():
    control = result("task_only", EVERY)
    lines = table([control, result("robust", [])]).splitlines()
    assert len(lines) == 4 and lines[0].count("|") == lines[-1].count("|")
    assert "| - | - |" in lines[2] and "| 0.002 | task_only |" in lines[3]
    assert "30.0 [10.8, 60.3] %" in lines[3]


def test_the_table_shows_detectors_where_they_were_measured():
    found = {"auroc_at_equal_length": 0.9555, "found_at_one_percent": 0.62}
    own = {"detectors": {"sets": {"seen": {"detectors": {"mean": found}}}}}
    lines = table([result("task_only", []), result("robust", [], **own)]).splitlines()
    assert "| - | - | - | - | 1,000 |" in lines[2]
    assert "| 0.956 | 62.0\N{NO-BREAK SPACE}% | - | - | 1,000 |" in lines[3]


def test_families_left_out_are_compared_on_their_rows_alone():
    def judged(cell, succeeded, groups, **changes):
        figures = {"attack_success": wilson(len(succeeded), 10).to_dict()}
        sets = dict.fromkeys(("seen", *groups), figures)
        by_set = dict.fromkeys(sets, succeeded)
        return {**result(cell, [], **changes), "sets": sets, "succeeded": by_set}

    both = ["left out a", "left out b"]
    results = [
        judged("control", EVERY, both),
        judged("whole", EVERY[:1], both),
        judged("without_a", [], ["left out a"], without_families=["naive", "social"],
               control="control", whole="whole"),
        judged("without_b", [], ["left out b"], without_families=["encoding"], whole="unknown",
               control="unknown"),
    ]  # fmt: skip
    assert left_out_table(results[:2]) == ""
    *_, one, other = lines = left_out_table(results).splitlines()
    assert len(lines) == 4
    assert one.startswith("| naive, social (seed 0) | 10 | 0.0 [0.0, 27.8] % | 10.0 [1.8, 40.4] %")
    assert one.endswith("| 100.0 [72.2, 100.0] % | 1 | 0.002 |")
    assert other.endswith("| - | - | - | - |")


def test_committed_results_can_be_read():
    results = ablation.read_results()
    rows = table(results).splitlines()[2:]
    assert len(rows) == sum(len(row["sets"]) for row in results) > 0


def test_a_line_holds_what_the_detectors_of_its_cell_find(
    tiny_model_directory, tiny_data, tmp_path, monkeypatch
):
    """A cell of a tiny model, from its training to its line and its row of the table."""
    tree = tiny_config(tiny_model_directory, tiny_data, tmp_path / "run").model_dump(mode="json")
    demo = {key: tree[key] for key in ("model", "lora", "train")}
    demo["train"]["max_steps"] = 1
    (tmp_path / "demo.yaml").write_text(json.dumps(demo), encoding="utf-8")
    monkeypatch.setattr(ablation, "CONFIG", tmp_path / "demo.yaml")
    monkeypatch.setattr(ablation, "RESULTS", tmp_path / "results" / "ablation.jsonl")
    monkeypatch.setattr(ablation, "_FITTING_ROWS", 8)
    rows = {"rows": [4, 4], "left_out_rows": 2, "settings": ["evaluation.max_new_tokens=4"]}
    given = argparse.Namespace(directory=tmp_path, **(GIVEN | rows))
    known = ablation.cells()
    for name in (ablation.BASE, "contrastive", "without_marks"):
        cell = known[name] if name == ablation.BASE else small(known[name], 4)
        ablation.run_cell(name, cell, 0, given)
    base, contrastive, without = ablation.read_results()
    for row, own in ((base, {MEAN}), (contrastive, {MEAN, HEAD}), (without, {MEAN})):
        assert set(row["detectors"]["sets"]) == {"seen", "novel"}
        for found in row["detectors"]["sets"].values():
            assert set(found["detectors"]) == {*own, "length", "words"}
            assert found["clean"] == found["attacked"] == 4
    assert set(without["sets"]) == {"seen", "novel", "left out marks"}
    assert without["sizes"] != base["sizes"] and "left_out" not in base["sizes"]
    assert "families left out" in left_out_table([base, contrastive, without])
