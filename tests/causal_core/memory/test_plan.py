"""The plan against what real steps allocate, against full traces, and against itself."""

from __future__ import annotations

import json

import pytest
import torch

from causal_core.config_file import parse_config
from causal_core.errors import ConfigError, ModelError
from causal_core.memory import (
    BatchShape,
    automatic_micro_batch,
    largest_micro_batch,
    largest_rank,
    predict,
    predict_run,
)
from causal_core.memory.architectures import architecture_of
from causal_core.memory.levers import levers, nearest_fit, with_overrides
from causal_core.memory.measure import TOLERANCE
from causal_core.memory.plan import CUBLAS_WORKSPACE, CUDA_CONTEXT, PHASES
from causal_core.memory.shapes import assumed_shape, longest_tree
from causal_core.memory.trace import LONG, SHORT, extrapolate, trace_step
from causal_core.run.context import LocalContext
from causal_core.run.exercise import HIDDEN, write_base
from causal_core.run.loop import train
from causal_core.trees.packing import FLAT, INTERVALS, ROWS
from tests.tiny_run import tiny_config

pytestmark = pytest.mark.long


def planned(**sections):
    tree = {
        "model": {"name_or_path": "HuggingFaceTB/SmolLM2-135M", "dtype": "bfloat16"},
        "lora": {"rank": 8},
        "data": {"max_length": 256},
        "train": {"micro_batch_tokens": 512},
        "resources": {"gpus_per_worker": 1},
    }
    for name, values in sections.items():
        tree.setdefault(name, {}).update(values)
    return parse_config(tree)


@pytest.fixture
def small(tiny):
    """A plan config over the tiny model: two layers are traced whole, in a moment."""

    def make(**sections):
        sections["model"] = {"name_or_path": str(tiny[0]), **sections.get("model", {})}
        return planned(**sections)

    return make


@pytest.mark.parametrize(
    "sections",
    [{}, {"train": {"gradient_checkpointing": True}}, {"quantization": "nf4"},
     {"train": {"optimizer": "adamw_8bit"}}, {"loss": {"preset": "contrastive"}},
     {"loss": {"lambda_preference": 1.0, "lambda_anchor": 0.1, "worst_case": 1.0}},
     {"train": {"matmul": "bfloat16"}}],
    ids=["plain", "checkpointing", "nf4", "8-bit", "reports' loss", "terms with a reference",
         "bfloat16 products"],
)  # fmt: skip
def test_what_a_run_allocates_is_what_was_planned(tiny, tmp_path, sections, monkeypatch):
    monkeypatch.setattr("causal_core.model.device_costs.bfloat16_speed", lambda library: 2.0)
    (model, data), sections = tiny, dict(sections)
    quantization = sections.pop("quantization", "none")
    config = tiny_config(model, data, tmp_path / "run", **sections)
    config.model.quantization = quantization
    config.train.micro_batch_tokens = 4000  # a step is one micro-batch
    memory = train(config, LocalContext(tmp_path / "run", torch.device("cpu")))["memory"]
    assert memory["kind"] == "allocated" and memory["measured_bytes"] > 2**20
    assert abs(memory["error"]) < 0.03


def test_with_several_micro_batches_a_step_the_plan_is_within_what_it_is_called_off_at(
    tiny, tmp_path
):
    """Every one is planned as large as the largest: where the others are smaller it is an upper
    end."""
    config = tiny_config(*tiny, tmp_path / "run", loss={"preset": "contrastive"})
    memory = train(config, LocalContext(tmp_path / "run", torch.device("cpu")))["memory"]
    assert memory["micro_batch"]["nodes"] < 1500  # of some 2,000 a step
    assert -0.03 < memory["error"] < TOLERANCE


@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_and_three_layers_tell_the_whole_model(checkpointing):
    config = planned(train={"gradient_checkpointing": checkpointing})
    architecture, shape = architecture_of(config.model), assumed_shape(config, 512)
    short, long, full = (
        trace_step(config, architecture, shape, "cuda", layers) for layers in (SHORT, LONG, 8)
    )
    peaks = extrapolate(short, long, 8)
    for phase in ("forward", "backward", "optimizer", "evaluation"):
        expected = max(p.total for (name, _), p in full.peaks.items() if name == phase)
        found = max(p.total for (name, _), p in peaks.items() if name == phase)
        assert found == pytest.approx(expected, rel=1e-3), phase


def test_components_add_up_in_every_phase_and_survive_json():
    plan = predict(planned())
    assert set(plan.phases) == set(PHASES)
    for phase in plan.phases.values():
        assert sum(phase.components.values()) == pytest.approx(phase.peak_bytes, rel=1e-6)
    assert plan.required_bytes == plan.peak_bytes + CUDA_CONTEXT
    assert json.loads(json.dumps(plan.to_dict()))["peak_bytes"] == plan.peak_bytes


def test_parameters_are_counted_as_they_are():
    parts = predict(planned()).phases["load"].components
    hidden, intermediate, layers, kv = 576, 1536, 30, 192
    per_layer = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * intermediate + 2 * hidden
    assert parts["base_weights"] == pytest.approx(
        2 * (49152 * hidden + layers * per_layer + hidden), rel=1e-3
    )
    ranks = 2 * (hidden + hidden) + 2 * (hidden + kv) + 3 * (hidden + intermediate)
    assert parts["adapter"] == pytest.approx(4 * 8 * layers * ranks, rel=0.01)


def test_a_known_plan_is_looked_up(monkeypatch):
    known = predict(planned())

    def traced_again(*_):
        raise AssertionError("traced again")

    monkeypatch.setattr("causal_core.memory.trace.trace_step", traced_again)
    assert predict(planned()) is known
    with pytest.raises(AssertionError, match="traced again"):
        predict(planned(lora={"rank": 9}))


def test_the_largest_micro_batch_fits_and_a_larger_one_does_not(small):
    config = small()
    budget = CUDA_CONTEXT + int(predict(config).peak_bytes * 1.7)
    tokens = largest_micro_batch(config, budget)
    assert tokens is not None and tokens > 512
    assert predict(config, micro_batch_tokens=tokens).required_bytes <= budget
    assert predict(config, micro_batch_tokens=tokens + 128).required_bytes > budget
    assert largest_micro_batch(config, CUDA_CONTEXT) is None
    rank = largest_rank(config, budget)
    assert rank is not None and rank > 8
    assert predict(with_overrides(config, (f"lora.rank={rank}",))).required_bytes <= budget


def test_auto_takes_the_configured_memory_and_says_when_nothing_fits(small):
    config = small(train={"micro_batch_tokens": "auto"}, resources={"gpu_memory": "560MiB"})
    tokens = automatic_micro_batch(config)
    assert predict_run(config).required_bytes <= 560 * 2**20 and tokens >= 256
    with pytest.raises(ConfigError, match="not even"):
        automatic_micro_batch(small(resources={"gpu_memory": "520MiB"}))
    with pytest.raises(ConfigError, match=r"resources\.gpu_memory"):
        automatic_micro_batch(small())


def test_levers_save_what_they_say_and_the_nearest_config_fits(small):
    config = small(train={"micro_batch_tokens": 2048}, data={"max_length": 1024})
    base = predict(config)
    found = {lever.name: lever for lever in levers(config)}
    lever = found["gradient checkpointing"]
    with_it = predict(with_overrides(config, lever.overrides))
    assert lever.saved_bytes == base.peak_bytes - with_it.peak_bytes > 0
    budget = CUDA_CONTEXT + base.peak_bytes // 2
    nearest = nearest_fit(config, budget)
    assert nearest is not None
    overrides, plan = nearest
    assert plan.required_bytes <= budget
    assert predict(with_overrides(config, overrides)).required_bytes <= budget


def test_sharing_among_workers_divides_what_zero_says(small):
    single = predict(small()).phases["optimizer"].components
    for stage in (1, 2, 3):
        tree = small().model_dump(mode="json")
        tree["engine"], tree["resources"]["workers"] = "deepspeed", 4
        tree["deepspeed"]["zero_stage"] = stage
        parts = predict(parse_config(tree)).phases["optimizer"].components
        assert parts["optimizer_state"] == round(single["optimizer_state"] / 4)
        assert (parts["gradients"] < single["gradients"]) == (stage >= 2)
        assert (parts["base_weights"] < single["base_weights"]) == (stage == 3)


@pytest.mark.parametrize("vocabulary", [128, 2**17])
def test_zero_3_has_room_for_what_it_gathers(tmp_path, vocabulary):
    """Two layers, or a layer and the output embedding where that is more."""
    base = write_base(tmp_path, vocabulary)
    tree = planned(model={"name_or_path": str(base)}).model_dump(mode="json")
    tree["engine"], tree["resources"]["workers"] = "deepspeed", 4
    workspace = []
    for stage in (2, 3):
        tree["deepspeed"]["zero_stage"] = stage
        workspace.append(predict(parse_config(tree)).phases["optimizer"].components["workspace"])
    layer = 7 * HIDDEN * 2 * HIDDEN  # in bfloat16
    assert workspace[1] - workspace[0] == 2 * (layer + max(layer, vocabulary * HIDDEN))


def test_deterministic_products_have_their_workspace(small):
    plans = [predict(small(train={"deterministic": chosen})) for chosen in (False, True)]
    added = plans[1].phases["backward"].peak_bytes - plans[0].phases["backward"].peak_bytes
    assert added == 32 * 2**20 - CUBLAS_WORKSPACE
    assert plans[0].phases["load"] == plans[1].phases["load"]


def test_paged_state_is_not_on_the_device(small):
    eight = predict(small(train={"optimizer": "adamw_8bit"}))
    paged = predict(small(train={"optimizer": "paged_adamw_8bit"}))
    assert paged.phases["resume"].components["optimizer_state"] == 0
    assert paged.peak_bytes < eight.peak_bytes


def test_planning_leaves_the_libraries_as_they_were(small):
    """The quantisation table that bitsandbytes keeps for the process stays a real one."""
    import bitsandbytes as bnb

    predict(small(model={"quantization": "nf4"}))
    bnb.functional.quantize_blockwise(torch.ones(64))  # makes the table where there is none
    assert bnb.functional.name2qmap["dynamic"].device.type == "cpu"


def test_an_unknown_model_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ModelError, match="no such directory"):
        predict(planned(model={"name_or_path": str(tmp_path / "nothing")}))


def test_a_shape_on_meta_is_that_shape():
    config = planned()
    for packing in (ROWS, FLAT, INTERVALS):
        shape = assumed_shape(config, 512, packing=packing)
        assert BatchShape.of(shape.meta_batch()) == shape


def test_a_gpu_s_kernels_make_no_scores_and_no_masks(small):
    """Twice the nodes take twice the memory that one micro-batch takes beyond one of 512."""

    def plans(packing):
        return [
            predict(small(), device="cuda", shape=assumed_shape(small(), nodes, packing=packing))
            for nodes in (1024, 2048, 4096)
        ]

    flat, rows = plans(INTERVALS), plans(ROWS)
    least, middle, most = (plan.peak_bytes for plan in flat)
    assert most - middle == pytest.approx(2 * (middle - least), rel=0.01)
    assert all(plan.phases["backward"].components["attention_masks"] == 0 for plan in flat)
    assert flat[-1].peak_bytes < rows[-1].peak_bytes


def test_where_rows_are_the_layout_their_largest_micro_batch_is_sought(small):
    config = small()
    budget = CUDA_CONTEXT + int(predict(config).peak_bytes * 1.7)
    tokens = largest_micro_batch(config, budget, packing=ROWS)
    assert tokens is not None

    def required(tokens):
        return predict(config, micro_batch_tokens=tokens, packing=ROWS).required_bytes

    assert predict(config, micro_batch_tokens=tokens, packing=ROWS).shape.flat is False
    assert required(tokens) <= budget < required(tokens + 128)


def test_several_attacks_of_a_row_are_planned_with_the_default_loss(small):
    config = small(data={"attacks_per_row": 3}, train={"micro_batch_tokens": 4096})
    labels = dict(assumed_shape(config, 4096).labels)
    assert labels["shared_clean"] == labels["shared_attacked"] == 3 * labels["task"]
    assert predict(config).peak_bytes > 0


@pytest.mark.parametrize("packing", [ROWS, FLAT, INTERVALS], ids=["rows", "flat", "intervals"])
def test_no_micro_batch_is_larger_than_the_global_batch(packing):
    config = parse_config({"train": {"global_batch": 2}, "data": {"max_length": 64}})
    whole = 2 * longest_tree(config)
    larger = assumed_shape(config, 2**20, packing=packing)
    assert larger == assumed_shape(config, whole, packing=packing)
