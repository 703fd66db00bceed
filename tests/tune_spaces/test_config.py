"""A sweep's file: what is refused of it before anything starts, and what it makes of a run."""

from __future__ import annotations

import pytest

from causal_core.config_file import load_config
from causal_core.errors import ConfigError
from tests.tune_spaces.sweeps import tiny_sweep, write_sweep
from tune_spaces.config import load_sweep


@pytest.fixture
def sweep_of(tiny_model_directory, tiny_data, tmp_path):
    def make(**tune):
        return tiny_sweep(tiny_model_directory, tiny_data, tmp_path / "sweep", **tune)

    return make


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"trails": 3}, r"tune\.trails: unknown key; did you mean `trials`"),
        ({"space": {"lora.rnak": {"kind": "choice", "values": [1]}}}, "did you mean `rank`"),
        ({"space": {"lora.rank": {"kind": "choice", "valuse": [1]}}}, "did you mean `values`"),
        ({"space": {}}, "space is empty"),
        ({"objectives": ["uplift", "uplift"]}, "names one twice"),
        ({"objectives": ["loss"]}, "attack_success"),
        ({"objectives": ["uplift", "benign_nll"], "asha": {"enabled": True}}, "leave one"),
        ({"objectives": ["seconds"], "asha": {"enabled": True}}, "seconds has none"),
        ({"gpu_memory": "24 apples"}, "amount of memory"),
        ({"gpu_memory": {"A10G": "22 pears"}}, "amount of memory"),
        ({"gpu_memory": {}}, "names no accelerator type"),
        ({"constraints": {"benign_exact": {}}}, "at_most, at_least"),
        ({"space": {"run.seed": {"kind": "choice", "values": [1]}}}, "must be the same"),
        ({"space": {"lora.alpha": {"kind": "choice", "values": [1]},
                    "lora.alpha_ratio": {"kind": "choice", "values": [1]}}}, "one of the two"),
        ({"space": {"loss.margin": {"kind": "uniform", "low": 0, "high": 1,
                                    "when": {"loss.contrastive": "triplet"}}}},
         "no unconditional choice"),
        ({"space": {"lora.alpha_ratio": {"kind": "choice", "values": [[1]]}}}, "is a number"),
        ({"space": {"lora.rank": {"kind": "choice", "values": ["x"]}, "lora.alpha_ratio":
                    {"kind": "choice", "values": [1], "when": {"lora.rank": "x"}}}}, "integer"),
        ({"space": {"lora.rank": {"kind": "a\tb"}}}, r"rank\.kind: found 'a\\tb', expected 'ch"),
    ],
)  # fmt: skip
def test_a_bad_tune_section_is_refused(section, message, tiny_model_directory, tiny_data, tmp_path):
    path = tmp_path / "sweep.yaml"
    write_sweep(path, tiny_model_directory, tiny_data, tmp_path / "run", {}, **section)
    with pytest.raises(ConfigError, match=message):
        load_sweep(path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("resources.workers=0", r"set resources\.workers=1"),
        ("data.validation=[]", r"data\.validation is empty"),
        ("tune.gpu_memory={A10G: 22GiB}", "allows only one"),
        ("tune.trials=0", "greater than or equal to 1"),
    ],
)
def test_a_run_that_no_sweep_can_vary_is_refused(sweep_of, override, message):
    overrides = [override]
    if "A10G" in override:
        overrides.append("resources.accelerator_type=T4")
    with pytest.raises(ConfigError, match=message):
        load_sweep(sweep_of().directory.with_suffix(".yaml"), overrides)


def test_a_sweep_file_is_no_run_file_and_the_other_way(sweep_of, tmp_path):
    sweep = sweep_of()
    with pytest.raises(ConfigError, match="causal tune"):
        load_config(sweep.directory.with_suffix(".yaml"))
    plain = tmp_path / "plain.yaml"
    plain.write_text("run: {dir: x}\n")
    with pytest.raises(ConfigError, match="no section `tune`"):
        load_sweep(plain)


def test_the_alpha_ratio_follows_the_rank(sweep_of):
    sweep = sweep_of(space={"lora.rank": {"kind": "choice", "values": [2, 8]},
                            "lora.alpha_ratio": {"kind": "choice", "values": [1, 2]}})  # fmt: skip
    config = sweep.tune.space.apply(sweep.run, {"lora.rank": 8, "lora.alpha_ratio": 2})
    assert (config.lora.rank, config.lora.alpha) == (8, 16.0)
