"""The campaign without Ray: the gate, the ledger, what continues after a crash, what wins."""

from __future__ import annotations

import io
import json
import re

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from causal_core.config_file import load_config
from causal_core.errors import ConfigError, UserError
from causal_core.memory import predict
from tests.tune_spaces.sweeps import tiny_sweep
from tune_spaces.budget import Gate, expected_slots, slots_by_type, survey
from tune_spaces.campaign import OUTCOME, Campaign
from tune_spaces.ledger import Ledger, Trial, ranked
from tune_spaces.objectives import dominates, pareto_front
from tune_spaces.report import write_report
from tune_spaces.results import write_best, write_results
from tune_spaces.space import show
from tune_spaces.table import show_table

pytestmark = [pytest.mark.long, pytest.mark.drawn]

RANKS = {
    "lora.rank": {"kind": "choice", "values": [2, 512]},
    "loss.lambda_robust": {"kind": "log_uniform", "low": 0.1, "high": 10, "zero": 0.3},
}


@pytest.fixture
def sweep_of(tiny_model_directory, tiny_data, tmp_path):
    def make(**tune):
        return tiny_sweep(tiny_model_directory, tiny_data, tmp_path / "sweep", **tune)

    return make


@pytest.fixture
def budget_between(sweep_of):
    """A budget that the small rank fits and the large one does not."""
    sweep = sweep_of(space=RANKS)
    gate = Gate({})
    small, large = (
        gate.smallest_plan(sweep.tune.space.apply(sweep.run, {"lora.rank": rank})).required_bytes
        for rank in (2, 512)
    )
    assert small < large
    return f"{(small + large) // 2}"


def finish(campaign, number, uplift, benign=1.0, memory=2**30):
    directory = campaign.directory(number)
    directory.mkdir(parents=True, exist_ok=True)
    metrics = {"uplift": {"value": uplift, "low": uplift - 1, "high": uplift + 1, "n": 9},
               "benign_exact": {"value": benign}, "peak_memory_bytes": {"value": memory},
               "seconds": {"value": 3.0}}  # fmt: skip
    outcome = {"status": "finished", "metrics": metrics, "steps": 5}
    (directory / OUTCOME).write_text(json.dumps(outcome))
    campaign.end(number, error=False)


def opened(sweep):
    ledger = Ledger(sweep.directory)
    ledger.begin(sweep)
    return Campaign(sweep, ledger, Gate(sweep.budgets), threads=1)


def test_points_over_the_budget_never_start_and_are_listed(sweep_of, budget_between):
    sweep = sweep_of(space=RANKS, trials=4, gpu_memory=budget_between)
    campaign = opened(sweep)
    started = []
    while (start := campaign.next()) is not None:
        started.append(start)
        finish(campaign, start.number, float(start.number))
    refused = [t for t in campaign.ledger.trials if t.status == "refused"]
    assert len(started) == 4 and refused
    assert {s.config.lora.rank for s in started} == {2}
    assert {t.point["lora.rank"] for t in refused} == {512}
    for trial in refused:
        assert trial.predicted_bytes > sweep.budget_bytes
        assert "even at the smallest micro-batch" in trial.reason
    rows = pq.read_table(write_results(campaign)).to_pylist()
    assert len(rows) == len(campaign.ledger.trials)
    assert sum(row["status"] == "refused" for row in rows) == len(refused)
    assert all(row["predicted_bytes"] > 0 and row["config"] for row in rows)
    best = load_config(write_best(campaign))
    assert best.lora.rank == 2 and best.run.dir == str(sweep.directory / "best")
    assert [row["number"] for row in rows if row["best"]] == [min(s.number for s in started)]


def test_the_table_breaks_no_number_on_80_columns(sweep_of):
    space = {
        "loss.lambda_robust": {"kind": "log_uniform", "low": 0.1, "high": 10},
        "loss.lambda_invariance": {"kind": "log_uniform", "low": 0.1, "high": 10},
        "lora.rank": {"kind": "choice", "values": [2, 256]},
        "lora.alpha_ratio": {"kind": "choice", "values": [1, 2]},
        "train.learning_rate": {"kind": "log_uniform", "low": 1e-4, "high": 1e-3},
    }
    sweep = sweep_of(space=space, trials=3, objectives=["uplift", "benign_nll"])
    campaign = opened(sweep)
    while (start := campaign.next()) is not None:
        finish(campaign, start.number, 10.123)
    console = Console(width=80, record=True, file=io.StringIO())
    show_table(console, campaign)
    text = console.export_text()
    assert all(len(line) <= 80 for line in text.splitlines())
    for trial in campaign.ledger.trials:
        for value in trial.point.values():
            assert re.search(rf"(?<!\S){re.escape(show(value))}(?!\S)", text), value
    assert "finished" in text and "9.12–11.12" in text
    for trial in campaign.ledger.trials:  # planned, and below it the GiB that were measured
        planned = f"{trial.predicted_bytes / 2**30:.2f}"
        assert re.search(rf" {planned}\n.* 1\.00\n", text)


def test_what_fits_gets_the_largest_micro_batch_at_the_same_global_batch(sweep_of):
    sweep = sweep_of(space=RANKS)
    config = sweep.tune.space.apply(sweep.run, {"lora.rank": 2})
    budget = Gate({}).smallest_plan(config).required_bytes + 2**20
    gate = Gate({None: budget})
    admitted = gate.admit(config)
    data, tokens = gate.profile(config), admitted.micro_batch_tokens
    assert data.longest_tree < tokens < data.longest_tree * config.train.global_batch
    assert admitted.config.train.global_batch == config.train.global_batch
    assert predict(admitted.config, data=data).required_bytes == admitted.predicted_bytes <= budget
    larger = predict(config, micro_batch_tokens=tokens + 64, data=data)
    assert larger.required_bytes > budget


def test_a_space_that_cannot_fit_is_refused_with_the_nearest_change(sweep_of):
    sweep = sweep_of(gpu_memory="1KiB")
    with pytest.raises(ConfigError, match=r"no point of tune\.space fits.*needs .* of "):
        survey(sweep, Gate(sweep.budgets))
    small = sweep_of(space={"lora.rank": {"kind": "choice", "values": [512]}})
    gate = Gate({})
    need = gate.smallest_plan(small.tune.space.apply(small.run, {"lora.rank": 512}))
    tight = sweep_of(space={"lora.rank": {"kind": "choice", "values": [512]}},
                     gpu_memory=str(need.required_bytes - 2**20))  # fmt: skip
    with pytest.raises(ConfigError, match="Nearest that fits") as refused:
        survey(tight, Gate(tight.budgets))
    changes = re.search(r"Nearest that fits \(.*?\): (.*)", str(refused.value)).group(1).split()
    tree = tight.tune.space.apply(tight.run, {"lora.rank": 512}).model_dump(mode="json")
    from causal_core.config_file import apply_override, parse_config

    assert Gate(tight.budgets).admit(parse_config(tree)).config is None
    for change in changes:
        apply_override(tree, change)
    admitted = Gate(tight.budgets).admit(parse_config(tree))
    assert admitted.config is not None, "the advice must be true"


def test_the_survey_says_how_much_fits(sweep_of, budget_between):
    sweep = sweep_of(space=RANKS, gpu_memory=budget_between)
    found = survey(sweep, Gate(sweep.budgets))
    assert 0.3 < found.fitting / found.points < 0.7
    assert found.smallest["lora.rank"] == 2 and found.smallest_bytes <= sweep.budget_bytes


def test_a_killed_sweep_continues_where_it_was(sweep_of, budget_between):
    sweep = sweep_of(space=RANKS, trials=5, gpu_memory=budget_between)
    whole = opened(sweep)
    points = []
    while (start := whole.next()) is not None:
        points.append(start.config.model_dump())
        finish(whole, start.number, 1 / (1 + start.number))
    uninterrupted = [(t.number, t.status, t.point) for t in whole.ledger.trials]
    path = whole.ledger.path
    lines = path.read_bytes().splitlines(keepends=True)
    # Killed anywhere, also in the middle of a line.
    for cut in (1, 2, len(lines) // 2, len(lines) - 1):
        for torn in (b"", lines[cut][: len(lines[cut]) // 2]):
            path.write_bytes(b"".join(lines[:cut]) + torn)
            again = opened(sweep)
            kept = {t.number: t.metrics for t in again.ledger.trials if t.is_over}
            again.settle()
            while (start := again.next()) is not None:
                assert start.number not in kept, "a trial that was over ran again"
                finish(again, start.number, 1 / (1 + start.number))
            found = [(t.number, t.status, t.point) for t in again.ledger.trials]
            assert found == uninterrupted


def test_an_interrupted_trial_comes_first_and_in_its_own_directory(sweep_of):
    sweep = sweep_of(trials=3)
    before = opened(sweep)
    one, two = before.next(), before.next()
    after = opened(sweep)
    again = [after.next(), after.next()]
    assert [s.config for s in again] == [one.config, two.config]
    assert again[0].config.run.dir == str(after.directory(one.number))


def test_a_grid_that_has_been_walked_is_over(sweep_of):
    space = {"lora.rank": {"kind": "choice", "values": [2, 4]}}
    sweep = sweep_of(space=space, searcher="grid", trials=9)
    campaign = opened(sweep)
    while (start := campaign.next()) is not None:
        finish(campaign, start.number, 1.0)
    assert campaign.is_over() and opened(sweep).is_over() and opened(sweep).next() is None
    assert "grid" in campaign.ledger.exhausted


def test_another_sweep_in_the_same_directory_is_refused(sweep_of):
    opened(sweep_of(trials=3))
    opened(sweep_of(trials=9))  # more of the same is welcome
    with pytest.raises(UserError, match=r"tune\.objectives"):
        opened(sweep_of(objectives=["benign_nll"]))


def test_a_trial_without_an_outcome_was_stopped_or_died(sweep_of):
    campaign = opened(sweep_of(trials=3))
    stopped, died = campaign.next().number, campaign.next().number
    campaign.report(stopped, {"step": 2, "validation_uplift": 7.5, "loss": 1.0})
    campaign.end(stopped, error=False)
    campaign.end(died, error=True)
    trials = {t.number: t for t in campaign.ledger.trials}
    assert trials[stopped].status == "stopped" and "step 2: uplift 7.5" in trials[stopped].reason
    assert trials[died].status == "failed" and "died" in trials[died].reason
    assert campaign.next() is not None, "others go on"


def test_the_winner_keeps_the_constraints(sweep_of):
    sweep = sweep_of(trials=3, constraints={"benign_exact": {"at_least": 0.5}})
    campaign = opened(sweep)
    for uplift, benign in ((0.1, 0.0), (2.0, 0.9), (3.0, 0.9)):
        finish(campaign, campaign.next().number, uplift, benign)
    assert ranked(campaign.ledger.trials, sweep) == [1]


@pytest.mark.parametrize("objectives", [["uplift"], ["uplift", "benign_nll"]])
def test_a_model_that_answers_nothing_does_not_win(sweep_of, objectives):
    def finished(number, uplift, benign_nll):
        metrics = {"uplift": {"value": uplift}, "benign_nll": {"value": benign_nll}}
        return Trial(number, {}, "finished", metrics=metrics)

    collapsed, useful, worse = finished(0, 0.1, 2.3), finished(1, 4.0, 0.4), finished(2, 5.0, 0.38)
    assert ranked([collapsed, useful, worse], sweep_of(objectives=objectives))[0] == 1
    tolerant = sweep_of(objectives=objectives, constraints={"benign_nll": {"at_most": 3.0}})
    assert ranked([collapsed, useful, worse], tolerant)[0] == 0, "the user's own bound rules"


def test_pareto_fronts_respect_directions():
    names = ["uplift", "benign_exact"]  # lower, higher
    points = {0: [1.0, 0.9], 1: [2.0, 0.95], 2: [2.0, 0.9], 3: [1.0, 0.9]}
    assert pareto_front(points, names) == [0, 3, 1]
    assert dominates([1.0, 0.9], [2.0, 0.9], names)
    assert not dominates([1.0, 0.9], [1.0, 0.9], names)


def test_the_report_shows_every_trial_and_escapes(sweep_of, budget_between):
    sweep = sweep_of(space=RANKS, trials=6, gpu_memory=budget_between)
    campaign = opened(sweep)
    while (start := campaign.next()) is not None:
        finish(campaign, start.number, 1.0 + start.number, memory=2**29)
    campaign.ledger.append({"event": "ended", "number": 0, "status": "failed",
                            "reason": "<script>alert(1)</script>"})  # fmt: skip
    page = write_report(campaign).read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert page.count('<th scope="row">') == len(campaign.ledger.trials)
    assert page.count("data:image/svg+xml") >= 3
    assert "http://" not in page and "https://" not in page.replace("https://www.w3.org", "")


@pytest.mark.parametrize(
    ("nodes", "resources", "slots"),
    [
        ([{"CPU": 3}], {"workers": 1}, 3),
        ([{"CPU": 9}], {"workers": 2}, 4),
        ([{"CPU": 16, "GPU": 4}], {"workers": 2, "gpus_per_worker": 1}, 2),
        ([{"CPU": 16, "GPU": 2}], {"workers": 1, "gpus_per_worker": 0.6}, 2),
        ([{"CPU": 16, "GPU": 1}, {"CPU": 16, "GPU": 1}], {"workers": 1, "gpus_per_worker": 0.5}, 4),
        ([{"CPU": 2, "GPU": 8}], {"workers": 1, "gpus_per_worker": 1}, 2),
    ],
)
def test_as_many_trials_at_a_time_as_have_their_workers(nodes, resources, slots):
    config = load_config(None, [f"resources.{k}={v}" for k, v in resources.items()])
    assert expected_slots(config, nodes) == slots


TYPED_NODES = [
    {"CPU": 8, "GPU": 2, "accelerator_type:A10G": 1.0},
    {"CPU": 8, "GPU": 1, "accelerator_type:A10G": 1.0},
    {"CPU": 8, "GPU": 1, "accelerator_type:A100-80G": 1.0},
    {"CPU": 8},
]


def test_slots_are_counted_for_each_type_of_device():
    config = load_config(None, ["resources.gpus_per_worker=1"])
    types = ["A10G", "A100-80G"]
    assert slots_by_type(config, types, TYPED_NODES) == {"A10G": 3, "A100-80G": 1}
    assert slots_by_type(config, [None], TYPED_NODES) == {None: 4}
    with pytest.raises(UserError, match=r"H100 \(there: A10, T4\)"):
        nodes = [{"CPU": 1, "accelerator_type:T4": 1, "accelerator_type:A10": 1}]
        slots_by_type(config, ["H100"], nodes)


def test_each_type_of_device_has_a_budget_and_the_least_loaded_one_takes_a_trial(sweep_of):
    """Rank 512 fits the large device only, rank 2 both, and each gets what its device holds."""
    free = sweep_of(space=RANKS)
    needs = {
        rank: Gate({}).smallest_plan(free.tune.space.apply(free.run, {"lora.rank": rank}))
        for rank in (2, 512)
    }
    small, large = (needs[rank].required_bytes + 2**20 for rank in (2, 512))
    sweep = sweep_of(space=RANKS, trials=8, gpu_memory={"LARGE": f"{large}", "SMALL": f"{small}"})
    assert list(sweep.budgets.items()) == [("SMALL", small), ("LARGE", large)]
    campaign = opened(sweep)
    campaign.slots = {"SMALL": 1, "LARGE": 2}
    placed = {}
    while (start := campaign.next()) is not None:  # none ends meanwhile
        resources, trial = start.config.resources, campaign.ledger.trials[-1]
        placed[start.number] = (start.config.lora.rank, resources.accelerator_type)
        assert trial.accelerator_type == resources.accelerator_type
        assert trial.predicted_bytes <= sweep.budgets[resources.accelerator_type]
        assert campaign.config_of(trial) == start.config, "the same when it continues"
    assert {where for rank, where in placed.values() if rank == 512} == {"LARGE"}
    first = min(number for number, (rank, _) in placed.items() if rank == 2)
    assert placed[first][1] == "SMALL", "of equally loaded ones the smallest"
    running = [where for _, where in placed.values()]
    assert running.count("SMALL") <= running.count("LARGE") + 1
    rows = pq.read_table(write_results(campaign)).to_pylist()
    assert {row["accelerator_type"]: row["budget_bytes"] for row in rows} == sweep.budgets
    for number in placed:
        finish(campaign, number, 1.0)
    best = load_config(write_best(campaign))
    assert best.resources.accelerator_type in ("SMALL", "LARGE")


def test_one_trial_that_does_not_fit_the_cluster_is_refused():
    config = load_config(None, ["resources.workers=4", "resources.gpus_per_worker=1"])
    with pytest.raises(UserError, match=r"4 worker\(s\)"):
        expected_slots(config, [{"CPU": 8, "GPU": 2}])
