"""A run directory of another: what its files say is believed as far as it has the right form."""

from __future__ import annotations

import json

import pytest

from causal_core.errors import UserError
from causal_core.evaluation.statistics import Estimate
from causal_core.files import METRICS_FILE, SUMMARY, read_records
from causal_core.report.charts import Group, bar_chart
from causal_core.report.recorded import read_summary
from causal_core.report.run_report import write_report
from tests.causal_core.report.test_run_report import summary, write_run

pytestmark = pytest.mark.drawn


def test_what_a_run_writes_is_read_as_it_is(tmp_path):
    run = write_run(tmp_path, summary())
    assert read_summary(run, ended=True) == summary()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("run", []), ("run", "x"), ("run.steps", "3"), ("run.steps", True), ("run.steps", -1),
        ("run.seconds", 10**400), ("run.parameters", [1]), ("run.parameters.base", "many"),
        ("run.memory", {"measured_bytes": "x"}), ("config", 1), ("config.model", "demo"),
        ("config.loss", ["task"]), ("evaluation", [1]), ("evaluation.models", [1]),
        ("evaluation.models.base", None), ("evaluation.models.trained.sets", "seen"),
        ("evaluation.models.trained.sets.seen.attack_success", {"value": 1e300, "n": 3}),
        ("evaluation.models.trained.sets.seen.attack_success", {"value": 0.5, "n": "3"}),
        ("evaluation.models.trained.sets.seen.families", [1]), ("evaluation.paired", {"seen": {}}),
        ("evaluation.descriptions", ["a"]), ("evaluation.examples", {"a": 1}),
        ("evaluation.examples", [{"answers": []}]), ("status", {"a": 1}),
    ],
)  # fmt: skip
def test_what_is_of_another_form_is_one_line_that_names_it(tmp_path, path, value):
    content = summary()
    *parents, leaf = path.split(".")
    node = content
    for part in parents:
        node = node[part]
    node[leaf] = value
    run = write_run(tmp_path, content)
    with pytest.raises(UserError, match="is not what a run writes") as caught:
        write_report(run)
    assert "\n" not in str(caught.value) and path.split(".")[0] in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff\xfe", b"[" * 10**5, b'{"a":' * 99 + b"1" + b"}" * 99,
     b'{"run":' + b"9" * 5000 + b"}", b"\x00" * 9],
)  # fmt: skip
def test_what_is_no_summary_is_refused(tmp_path, content):
    (tmp_path / SUMMARY).write_bytes(content)
    for ended in (False, True):
        with pytest.raises(UserError, match=r"summary\.json") as caught:
            read_summary(tmp_path, ended=ended)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("config", [float("nan"), {"loss": {"lambda_task": "many"}}])
def test_a_weight_that_is_no_number_is_unknown(tmp_path, config):
    page = write_report(write_run(tmp_path, summary(config=config))).read_text()
    assert "Weighted loss terms" in page


def test_only_a_run_that_ended_has_to_say_how(tmp_path):
    content = summary()
    del content["run"]["seconds"]
    run = write_run(tmp_path, content)
    read_summary(run)
    with pytest.raises(UserError, match=r"run\.seconds"):
        read_summary(run, ended=True)


@pytest.mark.parametrize(
    "line",
    [b"x", b"[]", b"1", b"{}", b'{"step": "1"}', b'{"step": true}', b'{"step": 1, "a": [1]}',
     b'{"step": 1, "a": {}}', b'{"step": 1, "a": 1' + b"0" * 99 + b"}", b"\xff", b"[" * 10**5],
)  # fmt: skip
def test_records_end_before_what_is_none(tmp_path, line):
    good = {"kind": "train", "step": 1, "loss": 1.0}
    (tmp_path / METRICS_FILE).write_bytes(json.dumps(good).encode() + b"\n" + line + b"\n")
    assert read_records(tmp_path / METRICS_FILE) == [good]


def test_a_chart_has_as_many_groups_as_can_be_told_apart():
    groups = [Group(f"family {n}", {"base": Estimate(0.5, 0.4, 0.6, 9)}) for n in range(3000)]
    chart = bar_chart("title", groups, ["base"], "Families.")
    assert "first 40 of 3,000" in chart.caption and chart.alt.count("family") == 40
