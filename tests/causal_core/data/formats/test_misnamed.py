"""What a file is instead of rows, or is called instead of what it is: told once, in words."""

import json
import re

import pytest

from causal_core.data.reader import read_triplets
from causal_core.data.schema import DataError
from tests.causal_core.data.test_reader import GOOD


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("x.csv", '{"a": 1}\n', "begins as JSON does; name it .jsonl"),
        ("x.csv", "\ufeff[1]\n", "begins as JSON does"),
        ("x.csv", "\na,b\n1,2\n", "its first line is empty: it has to name the fields"),
        ("x.json", json.dumps({"data": [GOOD], "v": 1}), "where rows are in 'data', write that"),
        ("x.json", json.dumps({"all rows": [GOOD]}), """jq '.["all rows"]'"""),
        ("x.json", json.dumps({"v": 1, "train": [GOOD], "more": [GOOD]}), "in 'train', 'more'"),
        ("x.json", json.dumps({"data": [GOOD]}, indent=1), "a list in it holds the rows"),
        ("x.json", json.dumps({k: [v] for k, v in GOOD.items()}), "is one object of columns"),
        ("x.json", json.dumps({k: {"0": v} for k, v in GOOD.items()}), 'orient="records"'),
    ],
)
def test_what_a_file_is_instead_of_rows_is_said_once(tmp_path, name, text, reason):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(DataError, match=re.escape(reason)) as caught:
        read_triplets(path)
    assert caught.value.count == 1


def test_a_list_in_the_only_good_row_is_no_data_set(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({**GOOD, "notes": [{"a": 1}]}))
    assert read_triplets(path).table.num_rows == 1
    path.write_text((json.dumps({"notes": [{"a": 1}], "x": 1}) + "\n") * 2)
    with pytest.raises(DataError, match="no row has system_instruction"):
        read_triplets(path)


def test_tables_in_text_are_read_as_spreadsheets_write_them(tmp_path):
    fields = ("system_instruction", "benign_input", "benign_output")
    for mark, blank in ((",", ""), (",", " "), (";", ""), ("\t", "")):
        path = tmp_path / "x.csv"
        joined = (mark + blank).join
        path.write_text("\ufeff" + joined(fields) + "\r\n" + joined(("S", '"u, v; w"', "a")))
        [found] = read_triplets(path).triplets()
        assert (found.system_instruction, found.benign_input) == ("S", "u, v; w")
        assert found.benign_output == "a"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("x.csv", b"\x1f\x8bx", "is compressed with gzip; name it .csv.gz"),
        ("x.tsv", b"PAR1", "is a Parquet file; name it .parquet"),
        ("x.csv.gz", b"a,b\n", "is not compressed; name it .csv"),
    ],
)
def test_a_wrong_ending_is_named_with_the_right_one(tmp_path, name, content, reason):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(f"{name}: {reason}")):
        read_triplets(path)


def test_a_file_that_is_named_twice_is_no_list_of_repeated_ids(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({**GOOD, "split": "train"}) + "\n" + json.dumps(
        {**GOOD, "id": "b", "split": "dev"}) + "\n")  # fmt: skip
    assert read_triplets([f"{path}#train", f"{path}#validation"]).table.num_rows == 2
    pattern = tmp_path / "*.jsonl"
    for again, told in ((path, "is named twice"), (pattern, f"as {path} and {pattern}"),
                        (f"{path}#dev", "is named twice")):  # fmt: skip
        with pytest.raises(DataError, match=re.escape(told)) as caught:
            read_triplets([path, again])
        assert caught.value.count == 1


@pytest.mark.parametrize("place", ["http://host/x.jsonl", "hf://datasets/a/b", "file://x.jsonl"])
def test_a_location_that_is_not_read_is_no_missing_file(place):
    with pytest.raises(DataError, match="is no location that is read; known: a path") as caught:
        read_triplets(place)
    assert place in str(caught.value)
