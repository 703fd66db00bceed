"""The same rows in every container; damaged, endless and hostile ones end in words."""

import csv
import gzip
import json
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from causal_core.data import opened
from causal_core.data.formats import columns, documents
from causal_core.data.formats.table import FORMATS
from causal_core.data.reader import read_triplets
from causal_core.data.schema import DataError
from tests.causal_core.data.test_reader import GOOD, row

CASES = Path(__file__).parents[5] / "shared" / "cases" / "data"
ROWS = [row(id=f"r{n}", context=f"é\n☃ {n}", split="train") for n in range(7)]


def jsonl(rows) -> str:
    return "".join(json.dumps(item) + "\n" for item in rows)


def write_csv(path: Path, rows, **options) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), **options)
        writer.writeheader()
        writer.writerows(rows)


def write_arrow(path: Path, rows, stream=False, compression=None) -> None:
    table = pa.Table.from_pylist(rows)
    kind = pa.ipc.new_stream if stream else pa.ipc.new_file
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with kind(str(path), table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=3)


def save_as_datasets(folder: Path, splits) -> None:
    """What `DatasetDict.save_to_disk` leaves: two Arrow files a split and small descriptions."""
    folder.mkdir()
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))
    for name, rows in splits.items():
        part = folder / name
        part.mkdir()
        files = [f"data-{n:05}-of-00002.arrow" for n in range(2)]
        for number, file in enumerate(files):
            write_arrow(part / file, rows[number::2], stream=True)
        state = {"_data_files": [{"filename": file} for file in files], "_split": name}
        (part / "state.json").write_text(json.dumps(state))
        (part / "dataset_info.json").write_text(json.dumps({"features": {}}))


WRITERS = {
    "x.jsonl.gz": lambda p: p.write_bytes(gzip.compress(jsonl(ROWS).encode())),
    "x.ndjson": lambda p: p.write_text(jsonl(ROWS)),
    "x.json": lambda p: p.write_text(json.dumps(ROWS)),
    "pretty.json": lambda p: p.write_text("\ufeff" + json.dumps(ROWS, indent=2)),
    "x.json.gz": lambda p: p.write_bytes(gzip.compress(json.dumps(ROWS).encode())),
    "splits.json": lambda p: p.write_text(
        json.dumps({"train": [{**r, "split": None} for r in ROWS]}, indent=1)),
    "x.csv": lambda p: write_csv(p, ROWS),
    "semicolons.csv": lambda p: write_csv(p, ROWS, delimiter=";"),
    "x.tsv": lambda p: write_csv(p, ROWS, delimiter="\t"),
    "x.arrow": lambda p: write_arrow(p, ROWS),
    "compressed.arrow": lambda p: write_arrow(p, ROWS, compression="zstd"),
    "stream.arrow": lambda p: write_arrow(p, ROWS, stream=True, compression="lz4"),
    "x.feather": lambda p: pyarrow.feather.write_feather(pa.Table.from_pylist(ROWS), p),
    "x.parquet": lambda p: pq.write_table(pa.Table.from_pylist(ROWS), p),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
def test_every_container_gives_the_same_rows(name, tmp_path):
    (tmp_path / "plain.jsonl").write_text(jsonl(ROWS))
    WRITERS[name](tmp_path / name)
    found = read_triplets(tmp_path / name).table
    assert found.to_pylist() == read_triplets(tmp_path / "plain.jsonl").table.to_pylist()


def test_every_kind_of_file_has_a_test():
    suffixes = {"".join(Path(name).suffixes) for name in WRITERS} | {".jsonl"}
    packed = {".ndjson.gz", ".csv.gz", ".tsv.gz"}  # as the others are packed
    assert set(FORMATS) <= suffixes | packed | {".pq", ".ipc"}


def test_rows_by_split_belong_to_their_split(tmp_path):
    rows = [row(id=..., split=...), row(id=..., split="validation")]
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"train": rows, "val": rows[:1], "test": []}))
    table = read_triplets(path).table
    assert table["split"].to_pylist() == ["train", "validation", "validation"]
    assert table["id"].to_pylist() == ["x:1", "x:2", "x:3"]
    assert read_triplets(f"{path}#train").table.num_rows == 1
    path.write_text(json.dumps({"train": rows, "extra": rows}))
    with pytest.raises(DataError, match="'extra' is no split"):
        read_triplets(path)


def test_a_saved_directory_is_read_by_split(tmp_path):
    rows = [row(id=..., split=...) for _ in range(4)]
    save_as_datasets(tmp_path / "mine", {"train": rows, "validation": rows[:2]})
    table = read_triplets(tmp_path / "mine").table
    assert table["split"].to_pylist() == ["train"] * 4 + ["validation"] * 2
    assert table["id"].to_pylist()[0] == "mine.train.data-00000-of-00002:1"
    assert len(set(table["id"].to_pylist())) == 6
    assert read_triplets(f"{tmp_path / 'mine'}#validation").table.num_rows == 2
    assert read_triplets(tmp_path / "mine" / "train").table.num_rows == 4


@pytest.mark.parametrize(
    ("description", "reason"),
    [
        ({"_data_files": [{"filename": "../secret.arrow"}]}, "which is no name of a file"),
        ({"_data_files": [{"filename": ".."}]}, "which is no name of a file"),
        ({"_data_files": [{}]}, "which is no name of a file"),
        ({"_data_files": [{"filename": "x.arrow"}]}, "lacks 'x.arrow'"),
        ({"_data_files": []}, "without any .arrow file"),
        ({"_data_files": 3}, "without any .arrow file"),
        ([], "no JSON object"),
        ({"_data_files": [], "_indices_data_files": [1]}, "flatten_indices"),
    ],
)
def test_a_hostile_description_reaches_nothing_else(tmp_path, description, reason):
    (tmp_path / "secret.arrow").write_bytes(b"")
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "state.json").write_text(json.dumps(description))
    with pytest.raises(DataError, match=reason):
        read_triplets(folder)


def problems_of(path: Path) -> list[tuple[int, str]]:
    result = read_triplets(path, on_error="collect")
    return [(p.line, p.reason) for p in result.errors]


@pytest.mark.parametrize("piece", [8, 2**20])
@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("[{good}, {good}", 3, "expected ], found the end of the file"),
        ("[{good}, {good}] x", 3, "found 'x' after its end"),
        ("[{good}, {good},]", 3, "Expecting value"),
        ('[{good}, {good}, {"id": "a]', 3, "Unterminated string"),
        ("[{good}, {good} {good}]", 3, "expected ], found '{'"),
        ('{"train": [{good}, {good}], ', 3, "Expecting value"),
        ('{"train": [{good}, {good}]', 3, "expected }, found the end"),
    ],
)
def test_what_ends_a_document_early_is_told_and_rows_before_it_stay(
    tmp_path, monkeypatch, piece, text, line, reason
):
    monkeypatch.setattr(documents, "_PIECE", piece)
    path = tmp_path / "x.json"
    path.write_text(text.replace("{good}", json.dumps(row(id=...))))
    result = read_triplets(path, on_error="collect")
    ((found, told),) = [(p.line, p.reason) for p in result.errors]
    assert (result.table.num_rows, found) == (2, line)
    assert told.startswith("not JSON: ") and reason in told


def test_hostile_arrays_end_in_words(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("[" * 100_000)
    assert "nested too deeply" in problems_of(path)[0][1]
    path.write_bytes(b'[{"id": "\xff"}]')
    assert "not UTF-8" in problems_of(path)[0][1]
    path.write_text(f"[{json.dumps(row(benign_input='x' * 9_000_000))}]")
    assert "a row of more than 4 MiB" in problems_of(path)[0][1]
    path.write_text(f'[{json.dumps(row(id="a"))}, 7, {{"id": "b", "id": "c"}}]')
    assert [p for p in problems_of(path) if p[1] != "missing"] == [
        (2, "not a JSON object"), (3, "the key 'id' is given twice"),
    ]  # fmt: skip


@pytest.mark.parametrize("first", ["[1, 2]", "[]", '{"train": []}', '[{"id": "x"}]'])
def test_a_line_that_is_an_array_is_one_bad_line_and_the_rest_is_read(tmp_path, first):
    path = tmp_path / "x.jsonl"
    path.write_text(first + "\n" + jsonl(ROWS))
    result = read_triplets(path, on_error="collect")
    assert (result.table.num_rows, result.bad_rows) == (len(ROWS), 1)
    assert {problem.line for problem in result.errors} == {1}


def test_a_place_beyond_a_damaged_dictionary_is_a_problem_of_its_row():
    texts = pa.DictionaryArray.from_arrays(pa.array([0, 1]), pa.array(["a"]), safe=False)
    batch = pa.RecordBatch.from_arrays([texts], names=["benign_input"])
    assert columns._record(batch, 0) == ({"benign_input": "a"}, [])
    row, ((field, reason),) = columns._record(batch, 1)
    assert (row, field) == ({}, "benign_input") and reason.startswith("cannot be read")


def test_a_large_array_is_not_in_memory_at_once(tmp_path):
    path = tmp_path / "x.json"
    one = json.dumps(row(id=..., context="x" * 50_000))
    path.write_text("[" + ",".join([one] * 1200) + "]")  # 60 MB of text
    read_triplets(f"{path}", on_error="collect")
    tracemalloc.start()
    with pytest.raises(DataError, match="no row has the split"):
        read_triplets(f"{path}#test_novel")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * 2**20


@settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(st.text(max_size=3), st.text(max_size=9) | st.floats()
       | st.integers()), max_size=5), st.integers(1, 9), st.sampled_from([None, 1]))  # fmt: skip
def test_an_array_is_cut_into_its_values_wherever_pieces_end(values, piece, indent):
    """Numbers, escapes and characters of several bytes across the ends of pieces."""
    import io

    class Taken(list):
        wants_text = True

        def take(self, value, line, extra, text):
            assert json.loads(text) == value or value != value
            self.append(value)

        def refuse_unparsed(self, *problem):
            raise AssertionError(problem)

    taken = Taken()
    text = json.dumps(values, indent=indent, ensure_ascii=False)
    values = json.loads(text.encode(errors="replace"))
    before, documents._PIECE = documents._PIECE, piece
    try:
        source = io.BytesIO(text.encode(errors="replace"))
        documents._Document(source, taken).read("array")
    finally:
        documents._PIECE = before
    assert [repr(dict(value)) for value in taken] == [repr(value) for value in values]


def test_problems_of_a_table_in_text_name_the_line(tmp_path):
    path = tmp_path / "x.csv"
    write_csv(path, [row(context="two\nlines"), row(id="b")])
    header, *rest = path.read_bytes().split(b"\r\n", 1)
    bad = b"one,two\r\n" + header.replace(b"id", b"\xff", 1) + b"\r\n" + b'x,"open\r\n'
    path.write_bytes(header + b"\r\n" + rest[0] + bad)
    result = read_triplets(path, on_error="collect")
    assert result.table.num_rows == 2
    assert [p.line for p in result.errors] == [5, 6, 7]
    reasons = [p.reason for p in result.errors]
    assert "2 cells in a row of" in reasons[0] and "not UTF-8" in reasons[1]
    assert "unexpected end of data" in reasons[2]
    for text, reason in (("id,id\n1,2\n", "more than one column"), ("x\n1\n", "first line is 'x'"),
                         ('a,"b\n', "no header")):  # fmt: skip
        path.write_text(text)
        with pytest.raises(DataError, match=reason):
            read_triplets(path)


def test_a_quote_that_is_never_closed_does_not_swallow_the_file(tmp_path):
    path = tmp_path / "x.csv"
    write_csv(path, [row()])
    with path.open("a") as file:
        file.write('b,"' + "never closed\n" * 800_000)
    assert "longer than 4 MiB" in problems_of(path)[0][1]
    assert csv.field_size_limit() == 131_072  # the process's own again


@pytest.mark.parametrize(
    ("name", "limit"),  # MiB; every empty line is read, and a hundred million take long
    [("bomb.jsonl.gz", 4), ("bomb.json.gz", 128), ("bomb.arrow", 128)],
)
def test_a_small_file_cannot_decode_to_gigabytes(name, limit, tmp_path, monkeypatch):
    assert opened._BOMB_BYTES == 128 * 2**20
    monkeypatch.setattr(opened, "_BOMB_BYTES", limit * 2**20)
    path = tmp_path / name
    if name.endswith(".gz"):
        piece = b"\n" * 2**20 if "jsonl" in name else b" " * 2**20
        with gzip.open(path, "wb") as file:
            file.write(b"" if "jsonl" in name else b"[")
            for _ in range(limit * 3 // 2):
                file.write(piece)
    else:
        texts = {key: pa.array([value] * 50) for key, value in GOOD.items()}
        texts["context"] = pa.array(["x" * 4_000_000] * 50)
        table = pa.table(texts)
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_file(str(path), table.schema, options=options) as writer:
            writer.write_table(table)
    assert path.stat().st_size < 300_000
    before = pa.total_allocated_bytes()
    with pytest.raises(DataError, match="could fill the memory"):
        read_triplets(path)
    assert pa.total_allocated_bytes() - before < 2**20  # what the test holds, alone


def test_damaged_containers_are_refused(tmp_path):
    whole = gzip.compress(jsonl(ROWS * 50).encode())
    for name, data, reason in [
        ("a.jsonl.gz", whole[:-20], "no whole gzip file"),
        ("b.jsonl.gz", b"not packed", "is not compressed; name it .jsonl"),
        ("c.arrow", b"ARROW1\0\0 but not really", "cannot be read as Arrow"),
        ("d.jsonl", whole, "name it .jsonl.gz"),
    ]:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=reason):
            read_triplets(tmp_path / name, on_error="collect")


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 255), st.booleans())
def test_any_damage_of_an_arrow_file_is_an_answer(arrow_bytes, first, second, byte, packed):
    seed = bytearray(arrow_bytes[packed])
    for place in (first, second):
        seed[place % len(seed)] = byte
    path = arrow_bytes["folder"] / "damaged.arrow"
    path.write_bytes(seed)
    try:
        result = read_triplets(path, on_error="collect")
    except DataError as problem:
        assert problem.count == 1
    else:
        assert result.table.num_rows + result.bad_rows > 0


@pytest.fixture(scope="module")
def arrow_bytes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arrow")
    write_arrow(folder / "plain.arrow", ROWS)
    write_arrow(folder / "packed.arrow", ROWS, compression="zstd")
    plain, packed = ((folder / f"{name}.arrow").read_bytes() for name in ("plain", "packed"))
    return {False: plain, True: packed, "folder": folder}


@pytest.mark.skipif(not CASES.is_dir(), reason="the shared cases are not here")
@pytest.mark.parametrize(
    "name", ["csv.csv", "dict_of_splits.json", "stream.arrow", "x.jsonl.gz", "train.jsonl"]
)
def test_files_that_users_bring(name):
    assert read_triplets(CASES / name).table.num_rows
