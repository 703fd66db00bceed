"""`causal data tokenize`: the cache that training reads, made here or by a Ray Data job."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from causal_core.data.reader import read_triplets
from causal_core.tokens import tokenise as tokenise_module
from causal_core.tokens.run_data import load_run_data
from ray_jobs.data_command import data_app
from tests.tiny_run import tiny_config, write_tiny_data

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def many_rows(tmp_path_factory) -> list[Path]:
    """Two Parquet files, the first of more than one shard: a few texts under ids of their own."""
    folder = tmp_path_factory.mktemp("many")
    few = read_triplets(write_tiny_data(folder, {"train": 50}) / "train.jsonl").table
    rows = pa.concat_tables([few] * 100)
    ids = pa.array(
        [f"row-{number}" for number in range(rows.num_rows)], rows.schema.field("id").type
    )
    rows = rows.set_column(rows.schema.get_field_index("id"), rows.schema.field("id"), ids)
    paths = [folder / "a.parquet", folder / "b.parquet"]
    pq.write_table(rows[:4500], paths[0], row_group_size=1000)
    pq.write_table(rows[4500:], paths[1])
    return paths


def tokenize(*arguments, code=0):
    result = RUNNER.invoke(data_app, ["tokenize", *map(str, arguments), "--json"])
    assert result.exit_code == code, (result.output, result.exception)
    return json.loads(result.stdout)


def content(cache: Path, key: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (cache / "tokens" / key).iterdir()}


def test_training_takes_what_was_tokenised_ahead(
    tiny_model_directory, tiny_data, tmp_path, monkeypatch
):
    config = tiny_config(tiny_model_directory, tiny_data, tmp_path)
    config.data.cache_dir, config.data.validation = str(tmp_path / "cache"), []
    arguments = (
        *config.data.train, "--model", tiny_model_directory, "--set",
        f"data.cache_dir={config.data.cache_dir}",
    )  # fmt: skip
    made = tokenize(*arguments)
    assert (made["rows"], made["already_there"]) == (18, False)
    again = tokenize(*arguments)
    assert (again["key"], again["already_there"]) == (made["key"], True)
    monkeypatch.setattr(tokenise_module, "tokenised", None)  # nothing is left to do
    assert load_run_data(config).train.fingerprint == made["key"]
    plain = RUNNER.invoke(data_app, ["tokenize", *map(str, arguments)])
    assert "18 rows, tokenised before" in " ".join(plain.stdout.split())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--set", "train.epochs=3"), "the settings that count here"),
        (("--set", "model.name_or_path=x"), "the model is --model"),
        (("--set", "model.trust_remote_code=true"), "--trust-remote-code"),
        (("--ray",), "which only Parquet has"),
    ],
)
def test_what_cannot_be_is_refused(options, reason, tiny_model_directory, tiny_data, tmp_path):
    found = tokenize(
        tiny_data / "train.jsonl", "--model", tiny_model_directory,
        "--set", f"data.cache_dir={tmp_path}", *options, code=1,
    )  # fmt: skip
    assert reason in found["errors"][0]["reason"]


def assert_same_cache(many_rows, model, tmp_path, *options):
    """Made by Ray, where one shard is there already and one is damaged, and by this process."""
    caches = [tmp_path / "ray", tmp_path / "here"]
    here = tokenize(*many_rows, "--model", model, "--set", f"data.cache_dir={caches[1]}")
    expected = content(caches[1], here["key"])
    assert len(expected) == 4  # three shards and the list of them
    left = caches[0] / "tokens" / here["key"]
    left.mkdir(parents=True)
    (left / "00000-0000001.arrow").write_bytes(expected["00000-0000001.arrow"])
    (left / "00001-0000000.arrow").write_bytes(b"cut off")
    kept = (left / "00000-0000001.arrow").stat().st_mtime_ns
    made = tokenize(
        *many_rows, "--model", model, "--ray", "--set", f"data.cache_dir={caches[0]}", *options
    )
    assert (made["key"], made["rows"]) == (here["key"], 5000)
    assert content(caches[0], made["key"]) == expected
    assert (left / "00000-0000001.arrow").stat().st_mtime_ns == kept


def test_ray_makes_the_same_cache(many_rows, tiny_model_directory, tmp_path, local_ray):
    assert_same_cache(many_rows, tiny_model_directory, tmp_path)


def test_ray_says_of_bad_rows_what_is_said_without(
    many_rows, tiny_model_directory, tmp_path, local_ray
):
    """An id that comes again in another file is seen by no worker alone."""
    arguments = (
        many_rows[1], many_rows[1].with_name("again.parquet"), "--model", tiny_model_directory,
        "--set", f"data.cache_dir={tmp_path}",
    )  # fmt: skip
    arguments[1].write_bytes(arguments[0].read_bytes())
    alone = tokenize(*arguments, code=1)
    assert "was used before" in alone["errors"][0]["reason"]
    assert tokenize(*arguments, "--ray", code=1) == alone
    assert not list(tmp_path.glob("tokens/*"))


@pytest.mark.slow
def test_two_nodes_make_the_same_cache(many_rows, tiny_model_directory, tmp_path):
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        assert_same_cache(
            many_rows, tiny_model_directory, tmp_path, "--set", f"ray.address={cluster.address}"
        )
    finally:
        cluster.shutdown()
