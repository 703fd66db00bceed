"""`causal data inject` as a user runs it: files, messages and exit codes."""

import json

import pytest
from typer.testing import CliRunner

from ray_jobs.data_command import data_app


def causal_data(*args):
    return CliRunner().invoke(data_app, [str(arg) for arg in args])


def plain_rows(count=60):
    cities = ("Rome", "Oslo", "Lima", "Cairo", "Paris")
    return [
        {
            "system_instruction": "Name the city of the order.",
            "benign_input": f"Order {n} goes to {cities[n % 5]}. It was paid.",
            "benign_output": cities[n % 5],
        }
        for n in range(count)
    ]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def traffic(tmp_path):
    return write(tmp_path / "traffic.jsonl", plain_rows())


def test_inject_writes_checked_splits_and_says_what_it_made(traffic, tmp_path):
    out = tmp_path / "own"
    result = causal_data("inject", traffic, out, "--attacks", 2)
    assert result.exit_code == 0, result.output
    assert "Split by rows" in result.output and "No leaks" in result.output
    assert result.output.count("witness") == 5  # the preview
    about = json.loads((out / "dataset.json").read_text())
    assert sum(about["rows"].values()) == 60 and about["split_by"] == "row"
    assert about["attacks"]["train"] == 2 * about["rows"]["train"]
    assert not set(about["attack_families"]["test_novel"]) & set(about["attack_families"]["train"])
    assert sum(about["payloads"].values()) == sum(about["attacks"].values())
    files = [out / name for name in about["files"].values()]
    checked = causal_data("check", *files, "--json")
    assert checked.exit_code == 0, checked.output
    assert json.loads(checked.stdout)["rows"] == 60

    again = causal_data("inject", traffic, tmp_path / "again", "--attacks", 2, "--json")
    told = json.loads(again.stdout)
    assert len(told.pop("preview")) == 5 and told == about
    for name in about["files"].values():
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes()


def test_rows_without_an_answer_are_sent_to_targets(tmp_path):
    rows = plain_rows(20)
    del rows[4]["benign_output"]
    rows[7]["benign_output"] = " "
    result = causal_data("inject", write(tmp_path / "t.jsonl", rows), tmp_path / "own")
    assert result.exit_code == 1 and not (tmp_path / "own").exists()
    assert "t.jsonl:5" in result.output and "causal data targets" in result.output
    assert len(result.output.splitlines()) == 1


def test_files_that_exist_are_kept_and_inputs_never_replaced(traffic, tmp_path):
    own = tmp_path / "own"
    assert causal_data("inject", traffic, own).exit_code == 0
    result = causal_data("inject", traffic, own)
    assert result.exit_code == 1 and "--force" in result.output
    assert causal_data("inject", traffic, own, "--force").exit_code == 0
    before = (own / "train.jsonl").read_bytes()
    result = causal_data("inject", own / "train.jsonl", own, "--force")
    assert result.exit_code == 1 and "is an input" in result.output
    assert (own / "train.jsonl").read_bytes() == before


def test_bad_rows_and_texts_that_drive_a_terminal(tmp_path):
    rows = plain_rows()
    for row in rows:
        row["benign_input"] += "\x1b[31m [/bold]"
    result = causal_data("inject", write(tmp_path / "t.jsonl", rows), tmp_path / "own")
    assert result.exit_code == 0, result.output
    assert "\x1b[31m" not in result.output
    (tmp_path / "bad.jsonl").write_text('{"system_instruction": 1}\n')
    result = causal_data("inject", tmp_path / "bad.jsonl", tmp_path / "other", "--json")
    assert result.exit_code == 1 and not json.loads(result.stdout)["ok"]


def test_rows_with_attacks_are_said_to_be_left_out(tmp_path):
    attacked = [
        {**row, "injection_input": f"{row['benign_input']} Say X.", "injection_output": "a"}
        for row in plain_rows(9)
    ]
    result = causal_data("inject", write(tmp_path / "t.jsonl", attacked), tmp_path / "own")
    assert result.exit_code == 1
    assert "no plain row is left to attack; dropped: 9 with attacks already" in result.output


def test_chats_and_other_layouts_are_taken_and_own_splits_are_said_to_go(tmp_path):
    rows = [
        {
            "turns": [row["system_instruction"], row["benign_input"]],
            "a": row["benign_output"],
            "split": "train",
        }
        for row in plain_rows(30)
    ]
    paths = ("system_instruction=turns.0", "benign_input=turns.1", "benign_output=a")
    options = [item for path in paths for item in ("--map", path)]
    given = write(tmp_path / "t.jsonl", rows)
    result = causal_data("inject", given, tmp_path / "own", *options)
    assert result.exit_code == 0, result.output
    assert "30 rows name a split of their own, which is not kept" in result.output
    chats = [
        {"messages": [{"role": role, "content": row[field]} for role, field in (
            ("system", "system_instruction"), ("user", "benign_input"),
            ("assistant", "benign_output"))]}
        for row in plain_rows(30)
    ]  # fmt: skip
    result = causal_data("inject", write(tmp_path / "c.jsonl", chats), tmp_path / "chats", "--json")
    assert json.loads(result.stdout)["own_splits"] == 0


def test_a_file_is_no_directory_to_write_to(traffic):
    for command in (("inject", traffic, traffic), ("generate", traffic)):
        result = causal_data(*command)
        assert result.exit_code == 1
        assert "is a file; name a directory for what is made" in result.output
