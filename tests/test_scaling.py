"""The sizes that `benchmarks.scaling` computes with are those of real models and checkpoints."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import scaling


@pytest.fixture(scope="module")
def state():
    return scaling.state_of("8B")


def test_counts_are_those_of_the_published_model_and_of_the_adapter_formula(state):
    assert state.base == 8_030_261_248
    assert state.matrices == state.base - 2 * 128_256 * 4096
    # r (in + out) per projection: q, o, k, v, gate, up, down.
    hidden, inner, kv = 4096, 14336, 1024
    per_layer = 2 * (hidden + hidden) + 2 * (hidden + kv) + 3 * (hidden + inner)
    assert state.adapter == 16 * 32 * per_layer
    assert state.projection == 2 * hidden * (hidden + 1) + 2 * hidden


def test_the_bytes_of_a_checkpoint_are_those_of_real_files(tmp_path):
    """Adapter, head and moments of a tiny run against the formula."""
    from causal_core.checkpoints.contents import ADAPTER, OPTIMIZER, PROJECTION
    from causal_core.checkpoints.store import CheckpointStore
    from ray_jobs.training.trainer import fit
    from tests.tiny_run import tiny_config, write_tiny_data, write_tiny_model

    data = write_tiny_data(tmp_path / "data", {"train": 4, "validation": 2})
    config = tiny_config(write_tiny_model(tmp_path / "model"), data, tmp_path / "run",
                         train={"max_steps": 1}, lora={"rank": 16})  # fmt: skip
    config.data.test = {}
    summary = fit(config)
    parts = summary["parameters"]
    state = scaling.State("tiny", 0, 0, parts["adapter"], parts["projection"])
    with CheckpointStore(str(tmp_path / "run" / "checkpoints")).newest_whole() as directory:
        size = sum((directory / name).stat().st_size for name in (ADAPTER, PROJECTION, OPTIMIZER))
    # Each file starts with a header of some kilobytes.
    assert state.checkpoint_bytes() <= size <= state.checkpoint_bytes() + 40_000


def test_an_all_reduce_of_one_node_never_touches_the_network():
    assert scaling.all_reduce_seconds(1e9, 1, 100) == 0
    assert scaling.all_reduce_seconds(1e9, 8, 100) == scaling.all_reduce_seconds(1e9, 8, 1e6)
    two, many = (scaling.all_reduce_seconds(1e9, n, 100) for n in (16, 512))
    # The ring's traffic per link goes from (n-1)/n = 1/2 to almost 1 of twice the size.
    assert 0.08 < two < many < 0.2


def test_efficiency_falls_with_gpus_and_rises_with_network_and_work(state):
    costs = np.full(100, 400)
    at = {
        (n, speed, work): scaling.efficiency(state, n, work, costs, speed, 3e14)
        for n in (8, 32, 128) for speed in (100, 400) for work in (1, 16)
    }  # fmt: skip
    for (n, speed, work), value in at.items():
        assert 0 < value <= 1
        assert value >= at[(128, speed, work)] - 1e-9
        assert at[(n, 400, work)] >= value if speed == 100 else True
        assert at[(n, speed, 16)] >= value


def test_equal_triplets_balance_and_one_long_one_does_not():
    assert scaling.balance(np.full(50, 100), gpus=8, per_gpu=4) == 1.0
    uneven = np.array([100] * 31 + [10_000])
    assert scaling.balance(uneven, gpus=8, per_gpu=1) < 0.9
