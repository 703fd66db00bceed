"""The terminal and the report draw the same conclusions from an evaluation."""

from __future__ import annotations

import html
import io
import json
import re

import pytest
from rich.console import Console

from causal_core.evaluation.row_by_row import mcnemar_exact
from causal_core.evaluation.statistics import wilson
from causal_core.report.run_report import write_report
from causal_core.report.verdict import verdict_of
from ray_jobs.console.result import show_evaluation

N = 72


def share(successes):
    return wilson(successes, N).to_dict()


def model(attacks, benign=60, under_attack=50):
    """A model on the novel set; `attacks` is None where no attack has a witness."""
    values = {
        "n": N,
        "witnesses": 0 if attacks is None else N,
        "attack_success": None if attacks is None else share(attacks),
        "uplift": None,
        "benign_exact": share(benign),
        "trigger_exact": None,
        "attacked_exact": share(under_attack),
        "families": {},
    }
    return {"sets": {"novel": values}}


def evaluation(only_reference=None, only_trained=0, **models):
    paired = {}
    if only_reference is not None:
        paired["novel"] = {
            "reference": "control" if "control" in models else "base",
            "only_reference": only_reference,
            "only_trained": only_trained,
            "p": mcnemar_exact(only_reference, only_trained),
        }
    return {"models": models, "descriptions": {}, "paired": paired, "examples": []}


def words(text):
    """A text on one line, whatever it was wrapped at."""
    return " ".join(text.split())


def said(evaluated):
    console = Console(width=80, file=io.StringIO(), record=True)
    show_evaluation(console, evaluated)
    return words(console.export_text())


def reported(evaluated, folder):
    summary = {"status": "finished", "run": {}, "config": {}, "evaluation": evaluated}
    (folder / "summary.json").write_text(json.dumps(summary))
    page = write_report(folder).read_text(encoding="utf-8")
    return words(html.unescape(re.sub(r"<[^>]+>", " ", page)))


BASE = model(24)
CASES = {
    "intervals apart": (
        evaluation(only_reference=30, base=BASE, control=model(31), trained=model(1)),
        "Improved", "lower than the control",
    ),
    "intervals overlap, the rows decide": (
        evaluation(only_reference=10, base=BASE, control=model(18), trained=model(8)),
        "Improved", "lower than the control",
    ),
    "intervals overlap, the rows do not decide": (
        evaluation(11, 6, base=BASE, control=model(18), trained=model(13)),
        "Undecided", "not distinguishable from the control",
    ),
    "no witness": (
        evaluation(base=model(None), control=model(None), trained=model(None)),
        "Unknown", "not known",
    ),
    "no control": (
        evaluation(only_reference=24, base=BASE, trained=model(0)),
        "Improved", "lower than the base",
    ),
    "worse, by the rows alone": (
        evaluation(0, 10, base=BASE, control=model(8), trained=model(18)),
        "Worse", "higher than the control",
    ),
    "at a cost": (
        evaluation(only_reference=30, control=model(31), trained=model(1, benign=20)),
        "Improved at a cost", "lower than the control",
    ),
    "nothing to compare with": (
        evaluation(trained=model(3)), "Not compared", "Attack success",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("evaluated", "label", "attacks"), CASES.values(), ids=CASES)
def test_terminal_and_report_say_the_same(evaluated, label, attacks, tmp_path):
    verdict = verdict_of(evaluated)
    assert verdict.label == label
    assert attacks in verdict.sets[0].points[0].conclusion
    terminal, report = said(evaluated), reported(evaluated, tmp_path)
    for text in (terminal, report):
        assert label in text and words(verdict.headline) in text
        for judged in verdict.sets:
            assert all(f"{point.conclusion}." in text for point in judged.points)
            assert words(judged.row_by_row) in text
        assert all(words(caveat) in text for caveat in verdict.caveats)


def test_the_reports_table_of_metrics_agrees_with_its_verdict(tmp_path):
    evaluated, _, _ = CASES["intervals overlap, the rows decide"]
    text = reported(evaluated, tmp_path)
    row = text[text.index("trained against control") :]
    row = row[row.index("Attack success") : row.index("Witness uplift")]
    assert row.split()[-1] == "lower"


def test_what_the_models_own_margin_leaves_out_is_told(tmp_path):
    """The margin stands in both tables, and beside it how many attacks it says nothing of."""
    own, base = model(1), model(24)
    values = own["sets"]["novel"]
    values |= {"own_margin_negative": share(9), "own_is_attacked": 5}
    base["sets"]["novel"]["own_is_attacked"] = 0
    evaluated = evaluation(base=base, trained=own)
    terminal, report = said(evaluated), reported(evaluated, tmp_path)
    assert all("Attacked answer preferred to own" in told for told in (terminal, report))
    assert "holds their witness: trained 5" in terminal
    assert "whose witness or answer that is: trained 5." in report
    without = evaluation(base=model(24), trained=model(1))  # as an earlier version wrote it
    assert "leaves" not in said(without) + reported(without, tmp_path)
