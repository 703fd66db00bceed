"""The attack command on a tiny run: the same rows for every model, and nothing done twice."""

from __future__ import annotations

import html
import io
import json
import shutil
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from rich.console import Console
from transformers import AutoTokenizer

from causal_core.attack.kinds import KINDS
from causal_core.attack.search import Search
from causal_core.attack.target import Target
from causal_core.attack.warm import SuffixAlong
from causal_core.checkpoints.contents import read_manifest
from causal_core.errors import UserError
from causal_core.report import attacks
from causal_core.report.attacks import read_attacks
from ray_jobs import attack
from ray_jobs.attack_given import universal_suffix
from ray_jobs.run import run_training
from ray_jobs.subjects import Asked
from tests.tiny_run import tiny_config

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def run(tiny_model_directory, short_data, tmp_path_factory):
    directory = tmp_path_factory.mktemp("attacked") / "run"
    config = tiny_config(
        tiny_model_directory, short_data, directory, train={"global_batch": 2},  # two steps
        checkpoint={"every_steps": 1}, validation={"at_checkpoints": False},
    )  # fmt: skip
    run_training(config, Console(quiet=True), test=False)
    return directory


def attacked(run, report=False, **options):
    """With its results where those of a run are; its report is drawn only for who reads it."""
    effort = attack.Effort(**{"rows": 2, "level": 4, **options})
    out = None if report else run / "attack"
    return attack.run_attack(Asked(run=run), Console(quiet=True), effort, out, force=True)


def test_a_quick_look_replaces_no_larger_attack(run, tmp_path, monkeypatch):
    point = {"budget": 16, "value": 0.5, "low": 0.2, "high": 0.8, "n": 4}
    earlier = {
        "kind": "words", "title": "t", "unit": "u", "data": "novel", "rows": 4, "seed": 0,
        "curves": {"base": [point], "trained": [point]}, "caveat": "c",
    }  # fmt: skip
    kept = tmp_path / "attack-words.json"

    def tried(curves=(), run=run, **effort):
        kept.write_text(json.dumps({**earlier, "curves": {**earlier["curves"], **dict(curves)}}))
        before, asked = kept.read_bytes(), Asked(run=run)
        try:
            attack.run_attack(
                asked, Console(quiet=True), attack.Effort(**{"rows": 4, "level": 16, **effort}),
                tmp_path,
            )  # fmt: skip
        finally:
            assert kept.read_bytes() == before

    monkeypatch.setattr(attack, "_attacked", lambda *_: pytest.fail("attacked"))
    for smaller in ({"rows": 3}, {"level": 4}, {"seed": 1}, {"curves": {"control": [point]}}):
        with pytest.raises(UserError, match="attack of this kind on 4 rows of novel with a budget"):
            tried(**smaller)
    monkeypatch.setattr(attack, "_attacked", lambda *_: {})
    tried()
    tried(rows=5, level=64)
    with pytest.raises(UserError, match="is the directory of a run"):
        attack.run_attack(Asked(run=run), Console(quiet=True), attack.Effort(), run / "best")


def test_base_and_run_are_attacked_alike_and_an_ended_search_is_not_done_again(run, monkeypatch):
    result = attacked(run)
    assert list(result["curves"]) == ["base", "trained"] and result["rows"] == 2
    for curve in result["curves"].values():
        assert [point["budget"] for point in curve] == [1, 4]
    rows = pq.read_table(run / "attack" / "words-trained.parquet").to_pylist()
    assert len(rows) == 2 and all(row["attacked_input"] for row in rows)
    assert json.loads((run / "attack" / "attack-words.json").read_text()) == result

    def again(*_):
        raise AssertionError("a budget that is done was spent again")

    monkeypatch.setattr(Search, "spend", again)
    assert attacked(run) == result
    with pytest.raises(AssertionError, match="spent again"):
        attacked(run, seed=1)  # another search


def test_a_damaged_record_or_one_of_other_rows_is_searched_again(run):
    result = attacked(run)
    record = run / "attack" / "words-trained.json"
    words = KINDS["words"]
    ids = [row["id"] for row in json.loads(record.read_text())["rows"]]

    def believed(content):
        """The levels that are taken from such a record."""
        record.write_text(content)
        return attack._recorded(Search, record, kept["key"], words, ids)[1]

    whole = record.read_text()
    kept = json.loads(whole)
    assert believed(whole) == [1, 4]
    for damage in ("{", "[]", '{"key": 1}', json.dumps({**kept, "rows": [1, 2]})):
        assert believed(damage) == []
    other = {**kept, "rows": [{**row, "id": "another"} for row in kept["rows"]]}
    assert believed(json.dumps(other)) == []
    assert attacked(run) == result
    assert json.loads(record.read_text()) == kept


def test_a_cut_or_the_end_of_its_time_loses_no_row_that_was_searched(run, tmp_path, monkeypatch):
    def into(place, **options):
        effort = attack.Effort(rows=2, **{"level": 4, **options})
        return attack.run_attack(Asked(run=run), Console(file=said), effort, place)

    said, queried, real = io.StringIO(), [], Search._query

    def query(self, row, *of):
        if queried.append(row.id) or len(queried) == cut:
            raise KeyboardInterrupt
        real(self, row, *of)

    monkeypatch.setattr(Search, "_query", query)
    monkeypatch.setattr(attack, "_KEPT_SECONDS", 0)
    cut = None
    whole = into(tmp_path / "whole")
    per_level, cut = queried[:2], 4  # the base: both rows with 1 query, both with 4
    queried.clear()
    with pytest.raises(KeyboardInterrupt):
        into(tmp_path / "cut")
    cut = None
    kept = json.loads((tmp_path / "cut" / "words-base.json").read_text())
    assert kept["done"] == [1]
    assert [len(row["tried"]) for row in kept["rows"]] == [4, 1]
    assert into(tmp_path / "cut") == whole
    for name in ("base", "trained"):
        one, other = (json.loads((tmp_path / of / f"words-{name}.json").read_text())
                      for of in ("whole", "cut"))  # fmt: skip
        assert one == other

    queried.clear()
    short = into(tmp_path / "short", minutes=1e-9)
    assert queried == []
    assert short["curves"] == {"base": [], "trained": []}
    assert "base: 1 queries for each row: out of time, not done" in said.getvalue()
    assert per_level and into(tmp_path / "short") == whole


@pytest.mark.parametrize("faster", [False, True])
def test_a_search_in_bfloat16_is_asked_for_and_another_one(run, tmp_path, monkeypatch, faster):
    targets = []
    monkeypatch.setattr(attack, "Target", lambda *of: targets.append(Target(*of)) or targets[-1])
    monkeypatch.setattr(attack, "takes_bfloat16", lambda asked, _: faster and asked == "auto")
    asked = Asked(run=run, settings=["train.matmul=auto"])
    attack.run_attack(asked, Console(quiet=True), attack.Effort(rows=1, level=1), tmp_path)
    assert [target.bfloat16 for target in targets] == [faster, faster]
    kept = json.loads((tmp_path / "words-trained.json").read_text())["key"]
    assert ("products" in kept) is faster
    targets.clear()
    asked = Asked(run=run)
    attack.run_attack(asked, Console(quiet=True), attack.Effort(rows=1, level=1), tmp_path)
    assert [target.bfloat16 for target in targets] == [False, False]


def test_a_budget_that_there_is_none_of_is_refused(run):
    with pytest.raises(UserError, match="--budget 5: with --kind words"):
        attacked(run, level=5)
    with pytest.raises(UserError, match="--budget 64: with --kind suffix it is one of 0, 25"):
        attacked(run, kind="suffix", level=64)
    with pytest.raises(UserError, match="--kind luck: it is one of words, delimiters"):
        attacked(run, kind="luck")


def test_every_kind_leaves_its_curve_and_the_report_shows_it(run):
    kinds = [kind for kind in KINDS if kind != "words"]
    titles = []
    for kind in kinds:
        level = 4 if kind == "delimiters" else 0
        result = attacked(run, report=kind == kinds[-1], kind=kind, level=level)
        assert result["kind"] == kind and set(result["curves"]) == {"base", "trained"}
        assert json.loads((run / "attack" / f"attack-{kind}.json").read_text()) == result
        titles.append(result["title"].capitalize())
    page = html.unescape((run / "report.html").read_text())
    assert "An attacker that adapts" in page
    assert len(set(titles)) == 4 and all(title in page for title in titles)


def test_a_run_is_tuned_along_from_base_to_best_and_a_universal_suffix_is_a_start(
    run, tmp_path, monkeypatch
):
    made = []
    monkeypatch.setitem(KINDS, "warm", replace(KINDS["warm"], make=lambda target, seed, given: (
        made.append(given), SuffixAlong(target, seed, given.way, given.start))[1]))  # fmt: skip
    out = tmp_path / "out"

    def attacked_into(kind):
        effort = attack.Effort(kind=kind, level=0, rows=2)
        attack.run_attack(Asked(run=run), Console(quiet=True), effort, out)

    attacked_into("warm")
    base, trained = made
    assert base.way == () and base.start == ()
    first = run / "checkpoints" / "step-00000001"
    assert trained.way == (None, first, run / "best") and trained.start == ()
    assert read_manifest(run / "best").step == 2  # which is a checkpoint, too, and not there twice

    attacked_into("universal")
    record = out / "universal-trained.json"
    kept = json.loads(record.read_text())
    found = kept["rows"][0]["suffix"]
    assert found and json.loads((out / "warm-trained.json").read_text())["key"]["start"] == []
    made.clear()
    attacked_into("warm")  # not believed: it began elsewhere
    assert [list(given.start) for given in made] == [found, found]
    assert json.loads((out / "warm-trained.json").read_text())["key"]["start"] == found

    tokens = len(AutoTokenizer.from_pretrained(run / "best"))
    assert list(universal_suffix(out, "trained", kept["key"]["model"], tokens)) == found
    for damage in ([-1], [10**6], ["a"], [1] * 99, 7):
        kept["rows"][0]["suffix"] = damage
        record.write_text(json.dumps(kept))
        assert list(universal_suffix(out, "trained", kept["key"]["model"], tokens)) == []
    made.clear()
    attacked_into("warm")
    assert [list(given.start) for given in made] == [found, []]


def test_what_has_no_checkpoints_on_its_way_is_refused_before_a_model_is_loaded(
    run, tmp_path, monkeypatch
):
    monkeypatch.setattr(attack, "in_memory", lambda *_: pytest.fail("a model was loaded"))
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "checkpoints" / "step-00000001" / "trainer_state.json").write_text("{")  # not whole
    refused = r"^trained: .*run/checkpoints has no whole checkpoint from before step 2, which"
    with pytest.raises(UserError, match=refused):
        attacked(copy, kind="warm", level=0)
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(UserError, match=refused):
        attacked(copy, kind="warm", level=0)
    asked = Asked(run=run, against={"other": f"adapter:{run / 'best'}"})
    with pytest.raises(UserError, match=r"--kind warm tunes along .* and other is no run"):
        attack.run_attack(asked, Console(quiet=True), attack.Effort(kind="warm"))


def test_a_model_that_is_no_run_is_attacked_on_its_own(tiny_model_directory, short_data, tmp_path):
    rows = str(short_data / "test_novel.jsonl")
    asked = Asked(model=str(tiny_model_directory), tests={"novel": [rows]})
    effort = attack.Effort(rows=2, level=1)
    result = attack.run_attack(asked, Console(quiet=True), effort, tmp_path / "out")
    assert list(result["curves"]) == ["base"]
    assert (tmp_path / "out" / "words-base.parquet").is_file()


@pytest.mark.parametrize(
    "damage",
    ["{", "[]", '{"kind": 1}', '{"curves": {"base": [{"budget": 1, "value": 7}]}}', "[" * 9999],
)
def test_a_curve_that_is_none_is_refused_in_one_sentence(run, damage, tmp_path):
    (tmp_path / "attack").mkdir()
    (tmp_path / "attack" / "attack-words.json").write_text(damage)
    with pytest.raises(UserError, match="is not what causal attack writes"):
        read_attacks(tmp_path)


def test_out_of_time_leaves_the_budgets_that_were_not_begun_out(run, monkeypatch):
    now, spend = [0.0], Search.spend

    def spent(*of):
        now[0] = 61.0  # while the first level is searched: it is not cut after its last row
        spend(*of)

    monkeypatch.setattr(attack.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(Search, "spend", spent)
    result = attacked(run, seed=7, rows=1, minutes=1.0)
    assert [point["budget"] for point in result["curves"]["base"]] == [1]
    assert result["curves"]["trained"] == []


@pytest.mark.parametrize(("broken", "says"), [(0.05, True), (0.5, False)])
def test_an_attack_that_does_not_break_the_reference_says_so(broken, says):
    point = {"budget": 4, "value": broken, "low": 0.0, "high": 1.0, "n": 20}
    result = {
        "curves": {"base": [point], "trained": [point]}, "rows": 20, "data": "novel",
        "title": "search", "unit": "queries for each row",
    }  # fmt: skip
    out = io.StringIO()
    attack.show_attack(Console(file=out, width=100), result)
    assert ("too weak" in out.getvalue()) is says
    assert "not robustness" in out.getvalue()


def test_the_report_knows_every_kind():
    assert tuple(KINDS) == attacks._KINDS


def test_a_run_whose_report_cannot_be_written_is_refused_before_the_work(
    run, tmp_path, monkeypatch
):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "summary.json").unlink()
    monkeypatch.setattr(attack, "in_memory", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(UserError, match=r"has no summary\.json"):
        attacked(copy, report=True)
