"""Files with weights: which rows come, how often, from where."""

from __future__ import annotations

import itertools

import pyarrow as pa
import pytest

from causal_core.config_file import parse_config
from causal_core.errors import ConfigError, UserError
from causal_core.tokens.mixture import mixed, weighted
from causal_core.tokens.run_data import load_run_data
from tests.causal_core.tokens.test_dataset import load
from tests.tiny_run import tiny_config


def ids(dataset) -> list[str]:
    return dataset.table["id"].to_pylist()


@pytest.fixture
def rows(tiny_data, tmp_path):
    return load(tiny_data / "train.jsonl", tmp_path)


@pytest.mark.parametrize(("weight", "count"), [(1, 18), (3, 54), (0.5, 9), (2.25, 40), (0.1, 1)])
def test_rows_come_as_often_as_their_weight_says(rows, tmp_path, weight, count):
    found = weighted(rows, weight, tmp_path)
    assert len(found) == count
    whole = int(weight) * len(rows)
    assert ids(found)[:whole] == ids(rows) * int(weight)
    # What is left over is spread over the file: of n rows at least one of each n / count.
    places = [ids(rows).index(identity) for identity in ids(found)[whole:]]
    limit = 1 / (weight % 1) if weight % 1 else 0
    assert all(later - earlier <= limit + 1 for earlier, later in itertools.pairwise(places))
    assert found.tokens(count - 1) == rows.tokens(ids(rows).index(ids(found)[-1]))
    again = weighted(rows, weight, tmp_path)
    assert (ids(again), again.fingerprint) == (ids(found), found.fingerprint)


def test_another_weight_is_other_data_and_no_row_is_none(rows, tmp_path):
    prints = {weighted(rows, weight, tmp_path).fingerprint for weight in (0.5, 0.75, 1.5, 2)}
    assert len(prints) == 4
    with pytest.raises(UserError, match=r"a weight of 0\.01 leaves none of 18 training rows"):
        weighted(rows, 0.01, tmp_path)


def test_repeated_rows_take_no_memory(rows, tmp_path):
    before = pa.total_allocated_bytes()
    found = mixed([weighted(rows, 500, tmp_path)] * 2)
    assert len(found) == 18_000
    assert pa.total_allocated_bytes() - before < 2**20


def test_a_config_names_files_with_weights(tiny_model_directory, tiny_data, tmp_path, monkeypatch):
    config = tiny_config(tiny_model_directory, tiny_data, tmp_path)
    plain = load_run_data(config)
    train, other = str(tiny_data / "train.jsonl"), str(tiny_data / "test_seen.jsonl")
    tree = config.model_dump(mode="json")
    tree["data"]["train"] = [{"path": train, "weight": 2}, {"path": other, "weight": 0.5}]
    found = load_run_data(parse_config(tree)).train
    assert len(found) == 2 * 18 + 3
    tree["data"]["train"] = {"path": train}
    same = load_run_data(parse_config(tree))
    assert same.fingerprint() == plain.fingerprint()  # a weight of 1 changes nothing
    monkeypatch.chdir(tiny_data)
    tree["data"]["train"] = ["a.jsonl", {"path": "train.jsonl", "weight": 2}]
    absolute = parse_config(tree).with_absolute_paths()
    assert [f.path for f in absolute.data.weighted_files()] == [
        str(tiny_data / "a.jsonl"), train,
    ]  # fmt: skip
    assert parse_config(absolute.model_dump(mode="json")) == absolute


@pytest.mark.parametrize("item", [{"path": "x", "weigth": 2}, {"path": "x", "weight": 0}, {}, 3])
def test_what_is_no_file_with_a_weight_is_refused(item):
    with pytest.raises(ConfigError, match=r"data\.train"):
        parse_config({"data": {"train": [item]}})
