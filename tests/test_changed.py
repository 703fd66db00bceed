"""`make check` runs the tests of what changed: rooms, importers, helpers, and the tree's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.changed import ALWAYS, targets_of

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        # Its room, and a test of another room that imports it.
        ("causal_core/trees/packing.py", ["tests/causal_core/trees",
                                          "tests/causal_core/step/test_exactness.py"]),
        ("causal_core/config.py", ["tests/causal_core/test_config.py"]),
        ("tests/causal_core/run/test_selection.py", ["tests/causal_core/run/test_selection.py"]),
        ("tests/tiny.py", ["tests/causal_core/step/test_exactness.py"]),
        ("ray_jobs/run.py", ["tests/ray_jobs/test_cli.py"]),
        ("causal_core/report/templates/report.html.j2", ["tests/causal_core/report"]),
        ("tune_spaces/budget.py", ["tests/tune_spaces/test_campaign.py"]),
        ("benchmarks/scaling.py", ["tests/test_scaling.py"]),
        ("cluster/ray-up.yaml", ["tests/test_cluster_files.py"]),
        ("README.md", []),
        ("causal_core/trees/gone.py", ["tests/causal_core/trees"]),
    ],
)  # fmt: skip
def test_a_change_brings_its_tests(changed, wanted):
    found = targets_of([changed])
    assert {*ALWAYS, *wanted} <= set(found)
    assert all((REPOSITORY / name).exists() for name in found)


def test_a_change_brings_no_more_than_that():
    assert set(targets_of(["README.md"])) == set(ALWAYS)
    assert "tests/ray_jobs/training/test_faults.py" not in targets_of(
        ["causal_core/trees/blocks.py"]
    )


def test_what_all_tests_share_brings_all():
    assert targets_of(["causal_core/run/loop.py", "tests/conftest.py"]) == ["tests"]


def test_a_file_inside_a_chosen_folder_is_not_named_twice():
    found = targets_of(
        ["causal_core/loss/contrastive.py", "tests/causal_core/loss/test_contrastive.py"]
    )
    assert "tests/causal_core/loss" in found
    assert "tests/causal_core/loss/test_contrastive.py" not in found
