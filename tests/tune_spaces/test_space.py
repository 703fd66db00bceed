"""The search space: reproducible points inside their bounds, each of them a valid config."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from causal_core.config import Config
from causal_core.errors import ConfigError
from tune_spaces.space import SearchSpace

SPACE = SearchSpace.model_validate(
    {
        "loss.lambda_robust": {"kind": "log_uniform", "low": 0.1, "high": 10, "zero": 0.3},
        "lora.rank": {"kind": "choice", "values": [4, 8]},
        "lora.dropout": {"kind": "uniform", "low": 0.0, "high": 0.2},
    }
)


def test_points_are_fixed_by_seed_and_trial_and_are_valid_configs():
    SPACE.check_against(Config())
    weights = []
    for trial in range(60):
        point = SPACE.point(seed=1, trial=trial)
        assert point == SPACE.point(seed=1, trial=trial)
        config = SPACE.apply(Config(), point)
        assert config.lora.rank in (4, 8) and 0 <= config.lora.dropout <= 0.2
        weights.append(config.loss.lambda_robust)
    assert 0.0 in weights
    assert all(w == 0 or 0.1 <= w <= 10 for w in weights)
    assert SPACE.point(seed=2, trial=0) != SPACE.point(seed=1, trial=0)


@pytest.mark.parametrize(
    ("path", "dimension", "message"),
    [
        ("lora.rnak", {"kind": "choice", "values": [4]}, "did you mean `rank`"),
        ("lora.rank", {"kind": "choice", "values": [4, 0]}, "greater than or equal to 1"),
        ("rank", {"kind": "choice", "values": [4]}, "not a section.field"),
    ],
)
def test_a_space_that_leaves_the_config_is_refused_before_any_trial(path, dimension, message):
    space = SearchSpace.model_validate({path: dimension})
    with pytest.raises(ConfigError, match=message):
        space.check_against(Config())


@pytest.mark.parametrize(
    "dimension",
    [
        {"kind": "uniform", "low": 2, "high": 1},
        {"kind": "log_uniform", "low": 0, "high": 1},
        {"kind": "normal"},
        {"kind": "choice", "values": []},
    ],
)
def test_a_dimension_that_makes_no_sense_is_refused(dimension):
    with pytest.raises(ValidationError):
        SearchSpace.model_validate({"lora.rank": dimension})


def test_the_shipped_sweep_is_valid():
    from tune_spaces.config import load_sweep

    sweep = load_sweep(Path(__file__).resolve().parents[2] / "configs" / "tune-cpu.yaml")
    assert sweep.tune.constraints and sweep.budget_bytes
