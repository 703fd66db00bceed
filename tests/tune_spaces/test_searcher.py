"""Searchers: the same history gives the same suggestion, refused regions are left, grids end.

The history is made here by a rule that stands for training: hundreds of trials take no time.
"""

from __future__ import annotations

import math

import pytest

from causal_core.errors import ConfigError
from tests.tune_spaces.sweeps import tiny_sweep
from tune_spaces.ledger import Trial
from tune_spaces.searcher import OptunaSearcher, searcher_of

RANKS = [1, 2, 4, 8, 16, 32, 64, 128]


@pytest.fixture
def sweep_of(tiny_model_directory, tiny_data, tmp_path):
    def make(**tune):
        return tiny_sweep(tiny_model_directory, tiny_data, tmp_path / "sweep", **tune)

    return make


def play(sweep, judge, rounds):
    """A whole search; `judge` turns a point into a trial's fields."""
    searcher, history = searcher_of(sweep), []
    for number in range(rounds):
        point = searcher.suggest(number, history)
        if point is None:
            break
        history.append(Trial(number, point, **judge(point)))
    return history


def uplift(value, **others):
    found = {"uplift": value, **others}
    return {"status": "finished", "metrics": {k: {"value": v} for k, v in found.items()}}


def test_a_suggestion_depends_on_the_history_and_on_nothing_else(sweep_of):
    sweep = sweep_of(trials=12)

    def judge(point):
        return uplift(abs(math.log(point["loss.lambda_robust"] + 0.1)) + point["lora.rank"])

    history = play(sweep, judge, 12)
    for number in (0, 5, 11):  # a new process, anywhere in the search
        assert OptunaSearcher(sweep).suggest(number, history[:number]) == history[number].point
    points = [str(trial.point) for trial in history]
    assert len(set(points)) > 9, "asks of one history must not draw the same numbers again"


def test_optuna_finds_the_better_half_and_random_does_not_care(sweep_of):
    def judge(point):
        return uplift((math.log10(point["loss.lambda_robust"]) - 0.8) ** 2)

    space = {"loss.lambda_robust": {"kind": "log_uniform", "low": 0.001, "high": 1000}}

    def late_mean(searcher):
        trials = play(sweep_of(space=space, trials=40, searcher=searcher), judge, 40)[20:]
        return sum(t.metrics["uplift"]["value"] for t in trials) / len(trials)

    assert late_mean("optuna") < 0.5 * late_mean("random")


@pytest.mark.parametrize("objectives", [["uplift"], ["uplift", "benign_nll"]])
def test_refused_points_teach_where_not_to_look(sweep_of, objectives):
    space = {"lora.rank": {"kind": "choice", "values": RANKS},
             "loss.lambda_robust": {"kind": "log_uniform", "low": 0.1, "high": 10}}  # fmt: skip

    def judge(point):  # the rank does nothing but cost memory
        if point["lora.rank"] > 16:
            return {"status": "refused", "predicted_bytes": 100 + point["lora.rank"]}
        weight = point["loss.lambda_robust"]
        return uplift(weight, benign_nll=-weight)

    late = 0
    for seed in range(3):
        sweep = sweep_of(space=space, trials=40, objectives=objectives, gpu_memory="100", seed=seed)
        late += sum(t.status == "refused" for t in play(sweep, judge, 80)[40:])
    assert late < 30, "of 120 suggestions a searcher that learns nothing has 45 refused"


def test_broken_constraints_count_as_infeasible(sweep_of):
    space = {"loss.lambda_robust": {"kind": "log_uniform", "low": 0.01, "high": 100}}

    def judge(point):  # the best uplift lies where benign quality is gone
        weight = point["loss.lambda_robust"]
        return uplift(1 / weight, benign_exact=1.0 if weight < 1 else 0.0)

    def kept(constraints):
        late = play(sweep_of(space=space, trials=40, constraints=constraints), judge, 60)[30:]
        return sum(t.metrics["benign_exact"]["value"] >= 0.5 for t in late)

    assert kept({}) <= 5, "without the constraint the search goes where quality is gone"
    assert kept({"benign_exact": {"at_least": 0.5}}) >= 12


def test_conditional_dimensions_appear_only_with_their_condition(sweep_of):
    space = {
        "loss.margin": {
            "kind": "uniform",
            "low": 0.1,
            "high": 1,
            "when": {"loss.contrastive": "triplet"},
        },
        "loss.contrastive": {"kind": "choice", "values": ["triplet", "info_nce"]},
        "loss.lambda_causal": {"kind": "log_uniform", "low": 0.1, "high": 1},
    }
    for searcher in ("optuna", "random"):
        history = play(sweep_of(space=space, searcher=searcher), lambda p: uplift(1.0), 12)
        kinds = {t.point["loss.contrastive"] for t in history}
        assert kinds == {"triplet", "info_nce"}
        for trial in history:
            assert ("loss.margin" in trial.point) == (trial.point["loss.contrastive"] == "triplet")


def test_a_grid_is_walked_once_and_needs_choices(sweep_of):
    space = {"lora.rank": {"kind": "choice", "values": [2, 4, 8]},
             "loss.lambda_robust": {"kind": "choice", "values": [0, 1]}}  # fmt: skip
    history = play(sweep_of(space=space, searcher="grid"), lambda p: uplift(0.0), 50)
    assert len(history) == 6 and len({str(t.point) for t in history}) == 6
    with pytest.raises(ConfigError, match=r"lora\.dropout is uniform"):
        sweep_of(space={"lora.dropout": {"kind": "uniform", "low": 0, "high": 0.1}},
                 searcher="grid")  # fmt: skip
