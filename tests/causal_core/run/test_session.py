"""What all workers must have in common before the first step."""

from __future__ import annotations

import pytest
import torch

from causal_core.errors import UserError
from causal_core.run.session import check_same_base, open_session
from tests.tiny_run import tiny_config

CPU = torch.device("cpu")


class OneOf:
    """A worker's engine in a group whose numbers are known."""

    def __init__(self, rank, numbers):
        self.rank, self.world_size = rank, len(numbers)
        self._numbers = torch.tensor(numbers, dtype=torch.float64)

    def sum_over_workers(self, values):
        assert values[self.rank] == self._numbers[self.rank]
        return self._numbers


class Noted:
    """Notes a worker's own number."""

    rank, world_size = 0, 1

    def sum_over_workers(self, values):
        self.number = float(values[0])
        return values


def number_of(fingerprint):
    engine = Noted()
    check_same_base(fingerprint, engine)
    return engine.number


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize(("ours", "theirs"), [("base@1", "base@2"), ("base@2", "base@1")])
def test_a_worker_with_another_base_is_refused_on_all_of_them(rank, ours, theirs):
    numbers = [number_of(ours), number_of(theirs), number_of(ours)]
    assert len(set(numbers)) == 2 and all(n == int(n) < 2**53 for n in numbers)
    with pytest.raises(UserError, match=r"worker 1 of 3 read another base model.*revision"):
        check_same_base(theirs if rank == 1 else ours, OneOf(rank, numbers))
    check_same_base(ours, OneOf(rank, [numbers[0]] * 3))


@pytest.mark.parametrize("collective", [False, True])
def test_where_forwards_are_collective_validation_is_cut_alike(
    tiny_model_directory, tiny_data, tmp_path, monkeypatch, collective
):
    """By `train.micro_batch_tokens: auto` a worker with less memory has a smaller budget."""
    config = tiny_config(tiny_model_directory, tiny_data, tmp_path / "run")
    monkeypatch.setattr("causal_core.engines.plain.PlainEngine.collective_forward", collective)
    monkeypatch.setattr(
        "causal_core.run.session._of_all_workers",
        lambda number, engine: [number, 375.0] if number == 500 else [number],
    )
    assert open_session(config, CPU).token_budget == (375 if collective else 500)
