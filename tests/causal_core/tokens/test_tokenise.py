"""Tokenising in shards: interrupted anywhere, the result is the same bytes; nothing is made twice;
data that cannot be used leaves nothing behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from causal_core.data import shards
from causal_core.data.column_paths import ColumnPaths
from causal_core.data.reader import read_triplets
from causal_core.data.shards import Files, read_shard, read_shards, shards_in
from causal_core.errors import UserError
from causal_core.tokens import tokenise as tokenise_module
from causal_core.tokens.dataset import load_dataset
from causal_core.tokens.prompts import build_prompt_encoder
from tests.tiny_run import tiny_tokenizer

ENCODER = build_prompt_encoder(tiny_tokenizer())
ROWS = 4  # of a shard
_TOKENISE_AND_WAIT = """
import sys
from causal_core.data import shards
from tests.causal_core.tokens.test_tokenise import load

def progress(done):
    print(done, flush=True)
    if done >= 8:
        sys.stdin.read()

shards.SHARD_ROWS = 4
load(sys.argv[1:-1], sys.argv[-1], progress=progress)
"""


def load(paths, cache, **options):
    return load_dataset(
        list(map(str, paths)), ENCODER,
        max_length=2000, overlong="error", cache=Path(cache), **options,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "SHARD_ROWS", ROWS)


@pytest.fixture
def made(monkeypatch):
    """How many rows each shard had that was tokenised."""
    found = []
    tokenised = tokenise_module.tokenised
    monkeypatch.setattr(
        tokenise_module, "tokenised", lambda s, e: found.append(s.rows) or tokenised(s, e)
    )
    return found


def content(cache):
    (directory,) = (Path(cache) / "tokens").iterdir()
    return {
        path.name: path.read_bytes() for path in directory.iterdir() if path.suffix != ".partial"
    }


def test_what_a_killed_process_has_made_is_kept_and_the_rest_is_the_same(tiny_data, tmp_path, made):
    files = [tiny_data / "train.jsonl", tiny_data / "validation.jsonl"]  # 18 and 6 rows
    whole = load(files, tmp_path / "whole")
    assert sorted(made) == [2, 2, 4, 4, 4, 4, 4]
    made.clear()
    process = subprocess.Popen(
        [sys.executable, "-c", _TOKENISE_AND_WAIT, *map(str, files), str(tmp_path / "cut")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    with process:
        assert [process.stdout.readline() for _ in range(2)] == ["4\n", "8\n"]
        process.kill()
    left = content(tmp_path / "cut")
    assert "whole.json" not in left and 2 <= len(left) < 7
    again = load(files, tmp_path / "cut")
    assert len(made) == 7 - len(left)
    assert content(tmp_path / "cut") == content(tmp_path / "whole")
    assert (again.fingerprint, again.table.to_pylist()) == (
        whole.fingerprint, whole.table.to_pylist(),
    )  # fmt: skip
    assert (
        whole.table.select(["id"]).to_pylist()
        == read_triplets(files).table.select(["id"]).to_pylist()
    )


def test_a_damaged_shard_is_made_again_and_no_other(tiny_data, tmp_path, made):
    first = load([tiny_data / "train.jsonl"], tmp_path).table.to_pylist()
    made.clear()
    before = content(tmp_path)
    (directory,) = (tmp_path / "tokens").iterdir()
    (directory / "00000-0000002.arrow").write_bytes(b"cut off")
    assert load([tiny_data / "train.jsonl"], tmp_path).table.to_pylist() == first
    assert (made, content(tmp_path)) == ([4], before)


@pytest.mark.parametrize("place", [0, 10])
def test_data_that_cannot_be_used_leaves_nothing(place, tiny_data, tmp_path):
    lines = (tiny_data / "train.jsonl").read_text().splitlines()
    lines[place] = lines[-1] = "no row"
    path = tmp_path / "bad.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(UserError) as found:
        load([path], tmp_path / "cache")
    with pytest.raises(UserError) as expected:
        read_triplets(path)
    assert str(found.value) == str(expected.value) and "in 2 rows" in str(found.value)
    assert not list((tmp_path / "cache").glob("tokens/*"))


def test_a_shard_that_cannot_be_written_is_kept_for_no_reason_of_the_data(
    tiny_data, tmp_path, monkeypatch
):
    """What was made before stays: the disk was full, the data was good."""
    write = tokenise_module.ShardedCache.write

    def full(self, file, number, data):
        if number == 2:
            raise tokenise_module.UnwritableError("no space")
        write(self, file, number, data)

    monkeypatch.setattr(tokenise_module.ShardedCache, "write", full)
    with pytest.raises(UserError, match="no space"):
        load([tiny_data / "train.jsonl"], tmp_path)
    assert "00000-0000000.arrow" in content(tmp_path)


@pytest.mark.parametrize("split", ["", "#train", "#validation"])
def test_a_part_of_a_parquet_file_is_the_same_shard_as_of_the_whole(tiny_data, tmp_path, split):
    table = read_triplets([tiny_data / "train.jsonl", tiny_data / "validation.jsonl"]).table
    table = table.append_column("unknown", pa.array(["x"] * table.num_rows)).drop_columns(["id"])
    path = tmp_path / "rows.parquet"
    pq.write_table(table, path, row_group_size=7)
    files = Files([f"{path}{split}"], ColumnPaths())
    whole, parts = [], []
    read_shards(files, whole.append)
    assert len(whole) >= 2
    (source,) = files.sources()
    for number in range(shards_in(source)):
        if (shard := read_shard(files, 0, number)) is not None:
            parts.append(shard)
    assert parts == whole
    rows = [json.dumps(row) for shard in parts for b in shard.batches for row in b.to_pylist()]
    assert len(rows) == {"": 24, "#train": 18, "#validation": 6}[split]
