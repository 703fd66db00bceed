"""Files that are broken, endless or hostile: refused by name, bounded in memory and time."""

import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from causal_core.credentials import message_without_credentials
from causal_core.data import reading
from causal_core.data.reader import read_triplets
from causal_core.data.schema import DataError
from tests.causal_core.data.test_reader import GOOD, errors_of, row, write_lines


def parquet(path: Path, rows: int = 2, **columns: object) -> Path:
    table = {**{key: [value] * rows for key, value in GOOD.items()}, **columns}
    pq.write_table(pa.table({key: value for key, value in table.items() if key != "id"}), path)
    return path


def test_a_small_file_cannot_fill_the_memory(tmp_path):
    long = pa.array(["x" * 10**6]).dictionary_encode()
    indices = pa.array([0] * 4096, pa.int32())
    bomb = pa.DictionaryArray.from_arrays(indices, long.dictionary)
    path = parquet(tmp_path / "dictionary.parquet", 4096, context=bomb)
    assert path.stat().st_size < 100_000
    assert "refused, as decoding it could fill the memory" in str(errors_of(path)[0])


def test_values_that_python_does_not_have_are_set_aside_row_by_row(tmp_path):
    dates = pa.array([2**31 - 1, 0], pa.int32()).view(pa.date32())
    result = read_triplets(parquet(tmp_path / "x.parquet", task=dates), on_error="collect")
    assert [(p.line, p.field) for p in result.errors] == [(1, "task"), (2, "task")]
    assert "cannot be read" in result.errors[0].reason
    nested = parquet(tmp_path / "y.parquet", task=pa.array([["a"], ["b"]]))
    assert "the column task holds list" in str(errors_of(nested)[0])


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_recognised_once(tmp_path, encoding):
    path = tmp_path / "x.jsonl"
    path.write_bytes("\n".join([json.dumps(GOOD)] * 20).encode(encoding))
    error, count = errors_of(path)
    assert count == 1 and "is UTF-16 text; save it as UTF-8" in str(error)
    table = tmp_path / "x.csv"  # as spreadsheets save it
    table.write_bytes("system_instruction,benign_input\nS,U\n".encode(encoding))
    error, count = errors_of(table)
    assert count == 1 and "is UTF-16 text; save it as UTF-8" in str(error)


@pytest.mark.parametrize("indent", [0, 2])
def test_an_object_spread_over_lines_is_recognised_once(tmp_path, indent):
    path = tmp_path / "x.json"
    for texts in ([GOOD], [GOOD, GOOD], [row(context="x" * 100_000)]):
        path.write_text("\n".join(json.dumps(text, indent=indent) for text in texts))
        error, count = errors_of(path)
        assert count == 1 and "spread over several lines" in str(error)


def test_what_is_no_regular_file_is_refused_unopened(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "link.parquet").symlink_to(tmp_path / "pipe.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "null.jsonl").symlink_to("/dev/zero")
    names = ["pipe.jsonl", "link.parquet", "folder.jsonl", "null.jsonl", "x" * 300, "a\0.jsonl"]
    with pytest.raises(DataError) as caught:
        read_triplets([tmp_path / name for name in names])
    parts = ["a pipe", "a pipe", "is a directory", "a device", "name too long", "such a name"]
    for problem, part in zip(caught.value.problems, parts, strict=True):
        assert part in problem.reason


def test_an_endless_line_is_one_problem_and_is_not_kept(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", b'{"id": "' + b"x" * 9_000_000 + b'"}', row(id="b"))
    result = read_triplets(path, on_error="collect")
    assert [(p.line, p.reason) for p in result.errors] == [(1, "the line is longer than 4 MiB")]
    assert result.table["id"].to_pylist() == ["b"]


def test_a_row_longer_than_any_line_may_be_is_set_aside_in_parquet_too(tmp_path):
    given = parquet(tmp_path / "x.parquet", benign_input=["A" * 5 * 2**20, "B"])
    result = read_triplets(given, on_error="collect")
    assert (result.table.num_rows, result.bad_rows) == (1, 1)
    assert "longer than 4 MiB" in str(result.errors[0])


def test_long_metadata_of_a_parquet_file_is_not_parsed(tmp_path):
    table = pq.read_table(parquet(tmp_path / "x.parquet"))
    pq.write_table(
        table.replace_schema_metadata({"note": "n" * 14 * 2**20}), tmp_path / "long.parquet"
    )
    with pytest.raises(DataError, match="its metadata has"):
        read_triplets(tmp_path / "long.parquet")


def test_utf_32_is_not_called_utf_16(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"id": "a"}', encoding="utf-32")
    with pytest.raises(DataError, match="is UTF-32 text; save it as UTF-8"):
        read_triplets(path)


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.json"])
def test_of_a_file_of_bad_rows_not_all_are_looked_at(tmp_path, name, monkeypatch):
    """300 KB can hold 40 million of them."""
    monkeypatch.setattr(reading, "MOST_BAD_ROWS", 500)
    rows = [json.dumps(row()).encode(), *[b"{}"] * 20_000]
    text = b"[" + b",".join(rows) + b"]" if name == "x.json" else b"\n".join(rows)
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    write_lines(tmp_path / "next.jsonl", row(id="b"))
    aside: list[object] = []
    found = read_triplets(
        [tmp_path / name, tmp_path / "next.jsonl"], on_error="collect", on_bad_row=aside.append
    )
    assert found.bad_rows == len(aside) == 500
    assert found.table.column("id").to_pylist() == ["a", "b"]
    assert "500 of its first 501 rows are bad; nothing is read from" in str(found.errors[0])


def test_many_bad_rows_among_good_ones_are_all_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MOST_BAD_ROWS", 500)
    rows = [row(id=str(n)) if n % 50 == 0 else b"{}" for n in range(2000)]
    write_lines(tmp_path / "x.jsonl", *rows)
    found = read_triplets(tmp_path / "x.jsonl", on_error="collect")
    assert (found.table.num_rows, found.bad_rows) == (40, 1960)


def test_a_file_without_bytes_is_not_opened(tmp_path, monkeypatch):
    """As the kernel's log and its kind, which look like empty files and wait when read."""
    (tmp_path / "x.jsonl").touch()
    monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("opened"))
    with pytest.raises(DataError, match="empty"):
        read_triplets(tmp_path / "x.jsonl")


def test_a_file_that_is_not_there_is_named_without_its_password(tmp_path):
    with pytest.raises(DataError) as caught:
        read_triplets("https://user:p%40secret@host/x.jsonl")
    assert "no location that is read" in str(caught.value)
    assert "secret" not in message_without_credentials(str(caught.value))


@pytest.mark.parametrize("blank", ["", "  ", "\u3000", None, ...])
def test_a_blank_split_matches_no_selector(tmp_path, blank):
    path = write_lines(tmp_path / "s.jsonl", row(split=blank), row(id="b", split="train"))
    assert read_triplets(f"{path}#train").table.column("id").to_pylist() == ["b"]
    assert read_triplets(path).table.column("split").to_pylist() == [None, "train"]
