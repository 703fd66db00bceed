"""`causal data benchmark` as a user runs it: files, messages and exit codes."""

import json

import pyarrow.parquet as pq
import pytest

from causal_core.data.reader import read_triplets
from ray_jobs.cli import main
from tests.causal_core.data.benchmarks import samples
from tests.causal_core.data.benchmarks.samples import write
from tests.causal_core.data.benchmarks.test_benchmarks import ALL
from tests.command_line import command


def benchmark(*arguments):
    return command(main, "data", "benchmark", *arguments)


def test_what_can_be_judged_and_what_cannot_is_said(tmp_path):
    source, out = write(tmp_path / "sep.json", samples.SEP), tmp_path / "sep.jsonl"
    result = benchmark("sep", source, out)
    assert result.returncode == 0, result.stderr
    assert "2 attacks, of which 1 have a witness that can tell" in result.stdout
    assert "floor: 1 witnesses (50.0%) are there already: 1 in the input" in result.stdout
    assert "2 rows have no reference answer" in result.stdout
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["injections"][0]["witness"] for row in rows] == ["iron", None]
    told = json.loads(benchmark("sep", source, tmp_path / "other.jsonl", "--json").stdout)
    assert told == {
        "rows": 2, "without_answer": 2, "attacks": 2, "judged": 1,
        "floors": {"in the input": 1}, "dropped": {},
    }  # fmt: skip


@pytest.mark.parametrize("name", ALL)
def test_every_benchmark_is_written_whole(name, tmp_path):
    files = [write(tmp_path / f"{n}.json", value) for n, value in enumerate(ALL[name])]
    for out in (tmp_path / "out.jsonl", tmp_path / "out.parquet"):
        result = benchmark(name, *files, out)
        assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert pq.read_table(tmp_path / "out.parquet").to_pylist() == rows


def test_rows_with_answers_are_triplets_like_others(tmp_path):
    source, out = write(tmp_path / "a.json", samples.ALPACAFARM), tmp_path / "a.jsonl"
    assert benchmark("alpacafarm", source, out, "--attacks", 2).returncode == 0
    triplets = list(read_triplets(out).triplets())
    assert [len(triplet.injections) for triplet in triplets] == [2, 2]


def test_mistakes_are_one_line(tmp_path):
    source = write(tmp_path / "sep.json", samples.SEP)
    for arguments, said in (
        (("spe", source, tmp_path / "x.jsonl"), "known: alpacafarm"),
        (("bipia", source, tmp_path / "x.jsonl"), "is no file of BIPIA"),
        (("sep", source, source), "is an input"),
        (("sep", source, tmp_path / "x.csv"), "write .jsonl or .parquet"),
        (("sep", tmp_path / "none.json", tmp_path / "x.jsonl"), "no such file"),
    ):
        result = benchmark(*arguments)
        assert result.returncode == 1 and said in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
        assert not list(tmp_path.glob("x.*"))
