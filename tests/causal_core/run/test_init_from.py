"""A run that starts from another's adapter (`lora.init_from`).

1. It begins with those very weights and a fresh head.
2. Where it began is compared by content on a resume, not by path.
3. An adapter of another shape, scaling or base is refused before the first step.
"""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from causal_core.checkpoints.contents import stored_weights
from causal_core.errors import CheckpointError
from causal_core.run import loop
from causal_core.run.context import LocalContext
from causal_core.run.session import open_session
from tests.tiny_run import tiny_config, write_tiny_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def first(tiny_model_directory, tiny_data, tmp_path_factory):
    run = tmp_path_factory.mktemp("first")
    steps = {"max_steps": 2, "learning_rate": 0.05}
    config = tiny_config(tiny_model_directory, tiny_data, run, train=steps)
    loop.train(config, LocalContext(run, CPU))
    return run


@pytest.fixture
def second(first, tiny_model_directory, tiny_data, tmp_path):
    def config(**sections):
        lora = {"rank": 2, "alpha": 4, "dropout": 0.1, "init_from": str(first)}
        sections["lora"] = {**lora, **sections.get("lora", {})}
        model = sections.pop("base", tiny_model_directory)
        steps = {"max_steps": 2, **sections.pop("train", {})}
        return tiny_config(model, tiny_data, tmp_path / "run", train=steps, **sections)

    return config


def test_it_begins_with_those_weights_and_a_fresh_head(first, second):
    stored = stored_weights(first / "best")
    begun = open_session(second(), CPU).engine.model.trainable_parameters()
    plain = open_session(second(lora={"init_from": None}), CPU)
    fresh = plain.engine.model.trainable_parameters()
    assert begun.keys() == stored.keys()
    for name, parameter in begun.items():
        assert torch.equal(parameter, (stored if "lora_" in name else fresh)[name]), name
    assert any(not torch.equal(stored[n], fresh[n]) for n in stored if "lora_B" in n)


def test_where_it_began_is_compared_by_content(first, second, tmp_path):
    one = tmp_path / "one"
    shutil.copytree(first / "best", one)
    run = tmp_path / "run"
    context = LocalContext(run, CPU)
    loop.train(second(lora={"init_from": str(one)}), context)
    moved = one.rename(tmp_path / "two")  # the same weights elsewhere
    loop.train(second(lora={"init_from": str(moved)}), LocalContext(run, CPU))
    with pytest.raises(CheckpointError, match="adapter to start from"):
        loop.train(second(lora={"init_from": None}), LocalContext(run, CPU))
    # A run that began from a run may be begun from as well.
    third = second(lora={"init_from": str(run)})
    third.run.dir = str(tmp_path / "third")
    assert open_session(third, CPU).base_fingerprint.count("+") == 1


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"rank": 3, "alpha": 6}, r"has shape \(2, \d+\), the model wants \(3, \d+\)"),
        ({"target_modules": ["q_proj"]}, "is unexpected"),
        ({"alpha": 8}, r"lora.alpha / lora.rank is 4.*set lora.alpha=4"),
        ({"init_from": "./nowhere"}, "no such directory"),
    ],
)
def test_what_does_not_fit_is_refused(second, lora, message):
    with pytest.raises(CheckpointError, match=message):
        open_session(second(lora=lora), CPU)


def test_an_adapter_of_another_base_is_refused(first, second, tmp_path):
    other = write_tiny_model(tmp_path / "other")
    described = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**described, "other": True}))
    with pytest.raises(CheckpointError, match="was trained on another base"):
        open_session(second(base=other), CPU)
