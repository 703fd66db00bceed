"""The comparison with peers: its rows, its objectives, its rules and its table. Without the extra;
tests/test_peers_unmodified.py runs the peers themselves."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest
import torch

from benchmarks.peers import __main__ as program
from benchmarks.peers import installed
from benchmarks.peers.contender import Measured, at_a_time
from benchmarks.peers.data_sets import (
    ATTACKS,
    DATA_SETS,
    LONGEST,
    SHORTEST,
    answered,
    built_in,
    long_documents,
    nothing_shared,
)
from benchmarks.peers.measure import DifferentWorkError, largest_difference, measure
from benchmarks.peers.models import LORA, copy_adapter, difference, gradient, our_model
from benchmarks.peers.objectives import ALL, PREFERENCE, SFT, WHOLE, objective
from benchmarks.peers.ours import ours
from benchmarks.peers.results import add_result, already, read_results
from benchmarks.peers.table import GOALS, judged, markdown
from benchmarks.peers.whole import fits, subclassed
from causal_core.loss.objective import computed_terms
from causal_core.tokens.prompts import build_prompt_encoder
from tests.peers_exercise import EXACT, base, rows, same
from tests.tiny import cross_entropy_sum, norms_in_float64, plain_forward
from tests.tiny_run import tiny_tokenizer


@pytest.fixture
def exact(monkeypatch):
    norms_in_float64(monkeypatch)


def test_built_in_rows_are_of_many_kinds_and_always_the_same():
    chosen = built_in(6)
    assert chosen == built_in(8)[:6]
    assert len({tuple(row.system) for row in chosen}) == 6


@pytest.mark.parametrize("at", ["end", None])
def test_long_documents_have_their_length_and_four_attacks(at):
    encoder = build_prompt_encoder(tiny_tokenizer())
    documents = long_documents(3, at, encoder)
    assert documents == long_documents(3, at, encoder)
    lengths = [len(row.system) + len(row.benign) for row in documents]
    for length, wanted in zip(lengths, (SHORTEST, (SHORTEST + LONGEST) // 2, LONGEST), strict=True):
        assert wanted <= length < wanted + 700  # the last paragraph ends where it ends
    assert {len(row.injections) for row in documents} == {ATTACKS}
    chosen = objective(SFT, documents)
    shared = chosen.path_tokens / chosen.nodes()
    # Attacks at the end leave the document to all branches; one at the start shares S alone.
    assert shared > 2.5 if at else 1.1 < shared < 2.5


def test_rows_that_share_nothing_share_nothing():
    chosen = nothing_shared(3)
    assert len({row.system[0] for row in chosen}) == len(chosen) == 6
    answers = objective(SFT, chosen)
    assert answers.nodes() == answers.path_tokens - len(chosen)  # the last answer token is no input
    assert objective(PREFERENCE, chosen) is None and objective(WHOLE, chosen) is None


def test_an_objective_takes_the_rows_that_have_what_it_needs():
    known, unknown = rows(2), [row.attacked(None) for row in rows(1)]
    for name in ALL:
        assert objective(name, known).rows == known
    assert objective(SFT, [*known, *unknown]).rows == [*known, *unknown]
    assert objective(PREFERENCE, [*known, *unknown]).rows == known
    assert {term.name for term in computed_terms(objective(WHOLE, known).loss)} == {
        "task", "robust", "invariance", "preference"
    }  # fmt: skip


def test_path_tokens_are_those_of_the_sequences_that_a_peer_gets():
    (row,) = rows(1)
    clean, *attacked = ([*prompt, *answer] for prompt, answer in answered(row))
    wanted = [row.system + i.prompt + i.attack_answer for i in row.injections]
    sizes = {SFT: [clean, *attacked], PREFERENCE: [*attacked, *wanted],
             WHOLE: [clean, *attacked, *wanted]}  # fmt: skip
    for name, sequences in sizes.items():
        assert objective(name, [row]).path_tokens == sum(map(len, sequences))


def test_the_answers_alike_are_a_mean_over_all_their_tokens(exact):
    """What a plain loop over unpadded sequences computes, in value and gradient."""
    model, chosen = our_model(base()).double(), objective(SFT, rows())
    found = ours(model, chosen).run(closely=True)
    model.zero_grad(set_to_none=True)
    sums = []
    for prompt, answer in chosen.sequences():
        logits = plain_forward(model, prompt + answer)[1][len(prompt) - 1 : -1]
        sums.append(cross_entropy_sum(logits, torch.tensor(answer)))
    loss = torch.stack(sums).sum() / chosen.labels
    loss.backward()
    assert found.loss == pytest.approx(float(loss), rel=1e-12)
    assert difference(found.gradient, gradient(model)) < EXACT
    # A label less is a hundred times as far away as the bound of the comparison allows.
    cut = objective(SFT, [*chosen.rows[1:], chosen.rows[0].attacked(0)])
    far = difference(ours(model, cut).run(closely=True).gradient, found.gradient)
    assert far > largest_difference(chosen.labels)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("batch", [1, 2])
def test_a_subclassed_trainer_computes_ours(name, batch, exact, tmp_path):
    model, chosen = our_model(base()).double(), objective(name, rows())
    peer = subclassed(model, base(), chosen, batch, str(tmp_path), LORA)
    same(peer, ours(model, chosen).run(closely=True), EXACT)


def test_an_adapter_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="not the same adapter"):
        copy_adapter(our_model(base()), our_model(base(), LORA.model_copy(update={"rank": 2})))


def test_equal_forwards_take_what_fits():
    assert at_a_time(8, 60) == 8 and at_a_time(8, 100) == 4
    assert at_a_time(6, 100) == 3 and at_a_time(8, 3000) == 1


@dataclass
class Scripted:
    """A contender that takes no time and says what it is told to."""

    title: str
    gradient: float = 1.0
    loss: float = 2.0
    batch: int = 1
    calls: list[bool] = field(default_factory=list)

    def run(self, closely: bool = False) -> Measured:
        self.calls.append(closely)
        found = {"a": torch.tensor([self.gradient, 1.0])} if closely else None
        return Measured(0.5, self.loss, found, 100 if closely else None)


def run(*peers: Scripted, repeats: int = 3, seconds: float = 60.0):
    mine = Scripted("causal-ray")
    figures = measure(objective(SFT, rows(2)), mine, peers, repeats, seconds, lambda what: None)
    return mine, figures


def test_rounds_are_in_turns_after_one_that_is_not_timed():
    peer = Scripted("peer")
    mine, figures = run(peer)
    assert mine.calls == peer.calls == [True, False, False, False]
    assert [c["seconds"] for c in figures["contenders"]] == [[0.5] * 3] * 2
    assert figures["contenders"][1]["gradient_difference"] == 0
    _, figures = run(Scripted("peer"), seconds=0.0)
    assert [len(c["seconds"]) for c in figures["contenders"]] == [1, 1]


@pytest.mark.parametrize("wrong", [{"gradient": 1.1}, {"loss": 2.1}, {"gradient": -1.0}])
def test_a_peer_that_computes_something_else_is_not_timed(wrong):
    peer = Scripted("peer", **wrong)
    with pytest.raises(DifferentWorkError, match="peer and causal-ray compute different things"):
        run(peer)
    assert peer.calls == [True]


def contender(title, seconds, peak):
    return {"title": title, "batch": 4, "seconds": seconds, "loss": 1.0, "peak_bytes": peak,
            "gradient_difference": 1e-5, "loss_difference": 0.0}  # fmt: skip


def result(data="built-in", peers=(("TRL SFTTrainer, padding_free", [5.0, 6.0], 400),), **more):
    figures = {
        "rows": 4, "path_tokens": 600, "nodes": 400, "labels": 40, "terms": "task + robust",
        "contenders": [contender("causal-ray", [2.0, 2.0], 100),
                       *(contender(*peer) for peer in peers)],
    }  # fmt: skip
    return {"data": data, "title": DATA_SETS[data].title, "objectives": {SFT: figures}, **more}


def test_the_table_shows_speed_peak_and_sharing():
    lines = markdown([result()]).splitlines()
    assert lines[2] == (
        "| built-in data, 4 rows, 1.50 x shared | task + robust | causal-ray, 4 at a time | "
        "300 (300 - 300) | 0.50 |  | 0 |  |"
    )
    assert "| 110 (100 - 120) | 1.38 | 2.75 (2.50 - 3.00) | 0 | 25% |" in lines[3]
    assert len({line.count("|") for line in lines[:4]}) == 1


def test_the_table_shows_the_newest_result_of_a_data_set():
    old = result(peers=[("TRL SFTTrainer, padding_free", [9.0, 9.0], 400)])
    assert markdown([old, result()]) == markdown([result()])


def test_the_table_keeps_what_a_newer_result_did_not_measure():
    other = result()
    other["objectives"] = {"whole": {**other["objectives"][SFT], "terms": "all of them"}}
    lines = markdown([result(), other]).splitlines()
    assert [("task + robust" in line, "all of them" in line) for line in lines[2:5:2]] == [
        (True, False), (False, True),
    ]  # fmt: skip


def test_goals_are_judged_by_the_worst_that_they_are_of():
    speed, long, nothing, peak = GOALS
    results = [
        result(),
        result("unshared", [("TRL SFT", [4.0, 4.0], 150), ("Trainer", [1.0, 1.0], 400)]),
    ]
    assert judged(speed, results)[1:] == ("2.75 x", "met")
    assert judged(long, results)[1:] == ("not measured", "")
    assert judged(nothing, results)[1:] == ("worst: 0.50 x", "met in 1 of 2")
    assert judged(peak, results)[1:] == ("worst: 67% (nothing shared, TRL SFT)", "met in 2 of 3")
    slow = [result(peers=[("TRL SFTTrainer", [3.0, 3.0], 100)])]
    assert judged(speed, slow)[1:] == ("1.50 x", "missed")


def test_a_result_stands_for_the_same_data_settings_machine_commit_and_versions(tmp_path):
    path = tmp_path / "results" / "peers.jsonl"
    asked = {"data": "long", "settings": {"rows": 4}, "processor": "x", "commit": "a",
             "versions": {"trl": "1"}}  # fmt: skip
    assert not already(asked, read_results(path))
    add_result({**asked, "objectives": {}}, path)
    add_result({**asked, "data": "real"}, path)
    assert already(asked, read_results(path))
    for changed in ({"commit": "b"}, {"settings": {"rows": 8}}, {"processor": "y"}):
        assert not already({**asked, **changed}, read_results(path))


def test_without_the_extra_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(installed, "EXTRA", ("trl", "no_such_package_at_all"))
    with pytest.raises(SystemExit, match=r"pip install .*\[peers\]"):
        program.main([])
    with pytest.raises(SystemExit, match="2"):
        program.main(["--data", "nowhere"])


def test_the_table_alone_needs_no_extra(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(installed, "EXTRA", ("no_such_package_at_all",))
    path, out = tmp_path / "peers.jsonl", tmp_path / "out.json"
    add_result(result(), path)
    program.main(["--table", "--results", str(path), "--json", str(out)])
    assert "| built-in data" in capsys.readouterr().out
    assert json.loads(out.read_text())[0]["data"] == "built-in"


def test_a_row_that_one_graph_cannot_hold_is_not_begun():
    # One clean, four attacked, four wanted answers after documents of 1,070 tokens: over 23 GB.
    assert not fits(9 * 1_070, 22 * 10**9)
    assert fits(9 * 200, 22 * 10**9)
