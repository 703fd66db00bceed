"""`causal data` as a user runs it: files, messages and exit codes."""

import json

import pytest
from typer.testing import CliRunner

from causal_core.config_file import parse_config
from causal_core.data.reader import read_triplets
from causal_core.errors import UserError
from causal_core.tokens.run_data import load_encoder, load_split
from ray_jobs.data_command import data_app

SMALL = ["--train", "40", "--validation", "20", "--test", "20"]


def causal_data(*args):
    return CliRunner().invoke(data_app, [str(arg) for arg in args])


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    result = causal_data("generate", folder, *SMALL)
    assert result.exit_code == 0, result.output
    assert "No leaks" in result.output
    return folder


@pytest.fixture
def broken(tmp_path, demo):
    """Two good rows and five kinds of bad ones."""
    good = (demo / "train.jsonl").read_bytes().splitlines()[:5]
    rows = [json.loads(line) for line in good]
    lines = [
        good[0],
        b'{"id": ',
        json.dumps({**rows[1], "benign_output": "  "}).encode(),
        b"\xff\xfe",
        json.dumps({**rows[2], "split": "\x1b[31mred"}).encode(),
        good[0],
        good[3],
    ]
    path = tmp_path / "broken.jsonl"
    path.write_bytes(b"\n".join(lines))
    return path


def test_generate_is_reproducible_and_describes_itself(demo, tmp_path):
    about = json.loads((demo / "dataset.json").read_text())
    assert about["rows"] == {"train": 40, "validation": 20, "test_seen": 20, "test_novel": 20}
    assert about["leaks"]["ok"]
    assert not set(about["attack_families"]["test_novel"]) & set(about["attack_families"]["train"])
    again = causal_data("generate", tmp_path / "again", *SMALL, "--json")
    assert json.loads(again.stdout) == about
    for name in about["files"].values():
        assert (tmp_path / "again" / name).read_bytes() == (demo / name).read_bytes()


def test_generate_writes_open_work_for_a_model_to_answer(tmp_path):
    result = causal_data("generate", tmp_path, *SMALL, "--open", 30)
    assert result.exit_code == 0 and "30 rows of open work" in result.output
    about = json.loads((tmp_path / "dataset.json").read_text())
    assert about["open_work"] == {"rows": 30, "file": "open.jsonl"}
    rows = read_triplets(tmp_path / "open.jsonl", on_error="collect", unanswered=True)
    assert rows.table.num_rows == 30 and not rows.errors
    assert causal_data("check", tmp_path / "open.jsonl").exit_code == 1


def test_generate_keeps_files_that_exist(demo):
    result = causal_data("generate", demo, *SMALL)
    assert result.exit_code == 1
    assert "--force" in result.output
    assert causal_data("generate", demo, *SMALL, "--force").exit_code == 0


def test_check_of_good_data(demo):
    files = [demo / f"{split}.jsonl" for split in ("train", "validation", "test_novel")]
    result = causal_data("check", *files)
    assert result.exit_code == 0, result.output
    assert "no leaks" in result.output
    found = json.loads(causal_data("check", *files, "--json").stdout)
    assert found["ok"] and found["rows"] == 80 and found["leaks"]["ok"]
    assert found["with_witness"] == 80


def test_check_names_five_kinds_of_broken_rows(broken):
    result = causal_data("check", broken)
    assert result.exit_code == 1
    for line in (2, 3, 4, 5, 6):
        assert f"broken.jsonl:{line}: " in result.output
    assert "\x1b" not in result.output
    found = json.loads(causal_data("check", broken, "--json").stdout)
    assert not found["ok"]
    assert [problem["line"] for problem in found["errors"]] == [2, 3, 4, 5, 6]


def test_quarantine_sets_bad_rows_aside(broken, tmp_path):
    aside = tmp_path / "aside.jsonl"
    result = causal_data("check", broken, "--quarantine", aside)
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in aside.read_text().splitlines()]
    assert [row["line"] for row in rows] == [2, 3, 4, 5, 6]
    assert rows[0]["raw"] == '{"id": '
    assert rows[1]["problems"] == [{"field": "benign_output", "reason": "only white space"}]
    assert causal_data("check", broken, "--quarantine", aside).exit_code == 1  # it exists

    only_bad = tmp_path / "only_bad.jsonl"
    only_bad.write_text("{}\n")
    rest = tmp_path / "rest.jsonl"
    assert causal_data("check", only_bad, "--quarantine", rest).exit_code == 1


def test_leaks_are_findings_unless_strict(demo, tmp_path):
    leaky = tmp_path / "leaky.jsonl"
    row = json.loads((demo / "train.jsonl").read_text().splitlines()[0])
    other = {**row, "id": "other", "split": "validation"}
    leaky.write_text(json.dumps(row) + "\n" + json.dumps(other) + "\n")
    result = causal_data("check", leaky)
    assert result.exit_code == 0
    assert "leak: train and validation share" in result.output
    assert causal_data("check", leaky, "--strict-leaks").exit_code == 1
    assert "leak:" not in causal_data("check", leaky, "--no-leaks").output


def test_convert_tells_of_leaks_as_check_does(demo, tmp_path):
    row = json.loads((demo / "train.jsonl").read_text().splitlines()[0])
    other = {
        **row,
        "id": "other",
        "split": "test_seen",
        "benign_input": row["benign_input"].upper(),
    }
    leaky, out = tmp_path / "leaky.jsonl", tmp_path / "out.jsonl"
    leaky.write_text(json.dumps(row) + "\n" + json.dumps(other) + "\n")
    told = [line for line in causal_data("check", leaky).output.splitlines() if "leak:" in line]
    assert any("train and test_seen share 2 benign_input" in line for line in told)
    for options in ([], ["--split-dir"]):
        outcome = causal_data("convert", leaky, out, *options)
        assert outcome.exit_code == 0 and [*told] == [
            line for line in outcome.output.splitlines() if "leak:" in line
        ]
    assert (
        "leak:" not in causal_data("convert", demo / "train.jsonl", tmp_path / "one.jsonl").output
    )


def test_a_line_break_in_a_name_begins_no_line(demo, tmp_path):
    out = tmp_path / "a\nerror: forged.jsonl"
    result = causal_data("convert", demo / "train.jsonl", out)
    assert result.exit_code == 0 and out.is_file()
    assert "forged" in result.output.replace("\n", "")
    assert not any(line.startswith("error:") for line in result.output.splitlines())


def test_convert_round_trip_and_overwriting(demo, tmp_path):
    source, there, back = demo / "train.jsonl", tmp_path / "t.parquet", tmp_path / "t.jsonl"
    assert causal_data("convert", source, there).exit_code == 0
    assert causal_data("convert", there, back).exit_code == 0
    assert back.read_bytes() == source.read_bytes()
    assert causal_data("convert", there, back).exit_code == 1
    assert causal_data("convert", there, back, "--force").exit_code == 0
    assert not list(tmp_path.glob(".*.partial"))


def test_convert_to_one_file_per_split(demo, tmp_path):
    files = [demo / f"{split}.jsonl" for split in ("train", "test_seen")]
    result = causal_data("convert", *files, tmp_path / "all.parquet", "--split-dir")
    assert result.exit_code == 0, result.output
    written = sorted(path.name for path in (tmp_path / "all").iterdir())
    assert written == ["test_seen.parquet", "train.parquet"]


def test_convert_stops_at_bad_rows_and_leaves_nothing(broken, tmp_path):
    out, aside = tmp_path / "out.jsonl", tmp_path / "aside.jsonl"
    assert causal_data("convert", broken, out).exit_code == 1
    assert not out.exists()
    assert causal_data("convert", broken, out, "--quarantine", aside).exit_code == 0
    assert len(out.read_text().splitlines()) == 2
    assert causal_data("convert", broken, tmp_path / "out.csv").exit_code == 1


def test_an_input_is_never_replaced(broken):
    before = broken.read_bytes()
    for args in (["check", broken, "--quarantine", broken], ["convert", broken, broken]):
        result = causal_data(*args, "--force")
        assert result.exit_code == 1
        assert "is an input" in result.output
    assert broken.read_bytes() == before


def test_rows_of_others_are_named_and_converted(tmp_path):
    chat = [{"role": r, "content": t} for r, t in (("system", "S"), ("user", "u"))]
    chat.append({"role": "assistant", "content": "a"})
    path, out = tmp_path / "chat.jsonl", tmp_path / "plain.jsonl"
    path.write_text((json.dumps({"messages": chat}) + "\n") * 1400)
    found = causal_data("check", path)
    assert found.exit_code == 1 and "0 good rows, 1 problems" in found.output
    assert "1,400 rows hold chats (`messages`), not triplets: causal data convert" in found.output
    assert causal_data("convert", path, out).exit_code == 0
    row = json.loads(out.read_text().splitlines()[0])
    assert (row["system_instruction"], row["benign_output"], row["injections"]) == ("S", "a", [])
    assert causal_data("check", out).exit_code == 0


def test_any_layout_is_mapped(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("prompt,question,answer\nS,u,a\n")
    fields = ["system_instruction=prompt", "benign_input=question", "benign_output=answer"]
    mapped = [part for field in fields for part in ("--map", field)]
    assert "but: prompt, question, answer" in causal_data("check", path).output
    assert causal_data("check", path, *mapped).exit_code == 0
    assert causal_data("convert", path, tmp_path / "x.parquet", *mapped).exit_code == 0
    wrong = causal_data("check", path, "--map", "bening_input=question")
    assert wrong.exit_code == 1 and "did you mean benign_input?" in wrong.output
    told = json.loads(causal_data("check", path, "--map", "x=y", "--json").stdout)
    assert not told["ok"] and "no field is called" in told["errors"][0]["reason"]


def test_a_hostile_number_of_families_is_not_listed(demo, tmp_path):
    rows = [json.loads(line) for line in (demo / "train.jsonl").read_text().splitlines()][:40]
    lines = [
        json.dumps(row | {"injections": [row["injections"][0] | {"attack_family": f"family {n}"}]})
        for n, row in enumerate(rows)
    ]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    shown = causal_data("check", tmp_path / "x.jsonl").output
    assert "... 40 in all" in shown and shown.count("family  ") == 31


def test_what_is_converted_goes_to_this_machine(demo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = causal_data("convert", demo / "train.jsonl", "s3://bucket/x.jsonl")
    assert done.exit_code == 1 and "names no file of this machine" in done.output
    assert not list(tmp_path.iterdir())


def test_rows_that_a_run_has_no_room_for_are_counted_by_branch(
    demo, tmp_path, tiny_model_directory, monkeypatch
):
    """By the run's own tokenizer (every byte a token), as many as training stops at."""
    asked = (demo / "train.jsonl", "--no-lint", "--model", tiny_model_directory)
    counted = causal_data("check", *asked, "--json")
    [room] = json.loads(counted.stdout)["tokens"].values()
    assert room["too_long"] == 0 and room["rows"] == 40 and not room["branches"]
    assert "all 40 rows fit" in causal_data("check", *asked).stdout
    config = parse_config({
        "run": {"dir": str(tmp_path / "run")}, "model": {"name_or_path": str(tiny_model_directory)},
        "data": {"train": [str(demo / "train.jsonl")], "max_length": room["longest"] - 150},
    })  # fmt: skip
    (tmp_path / "own.yaml").write_text(config.to_yaml())
    short = causal_data("check", *asked[:2], "--config", tmp_path / "own.yaml", "--json")
    assert short.exit_code == 0, short.output
    [found] = json.loads(short.stdout)["tokens"].values()
    assert found["longest"] == room["longest"] and found["limit"] == room["longest"] - 150
    with pytest.raises(UserError, match=f"^{found['too_long']} of 40 triplets are longer") as stops:
        load_split(config, load_encoder(config), config.data.train)
    assert all(repr(identity) in str(stops.value) for identity in found["examples"])
    assert max(found["branches"].values()) <= found["too_long"] <= sum(found["branches"].values())
    said = causal_data("check", *asked, "--max-length", found["limit"]).stdout
    assert f"{found['too_long']} of 40 rows do not fit data.max_length={found['limit']}" in said


def test_whose_tokens_are_counted_must_be_clear(demo, tmp_path):
    for arguments, said in (
        (("--max-length", 9), "say whose"),
        (("--model", "demo", "--config", "x.yaml"), "leave --model out"),
        (("--config", tmp_path / "none.yaml"), "no such config file"),
    ):
        result = causal_data("check", demo / "train.jsonl", *arguments)
        assert result.exit_code == 1 and said in result.output


def test_exit_codes_of_wrong_use(tmp_path):
    assert causal_data("check", tmp_path / "missing.jsonl").exit_code == 1
    assert "no such file" in causal_data("check", tmp_path / "missing.jsonl").output
    assert (
        json.loads(causal_data("check", tmp_path / "missing.jsonl", "--json").stdout)["ok"] is False
    )
    assert causal_data("check").exit_code == 2
    assert causal_data("generate", tmp_path / "x", "--train", "0").exit_code == 2


@pytest.mark.parametrize("command", ["generate", "check", "convert"])
def test_help_teaches_by_example(command):
    result = causal_data(command, "--help")
    assert result.exit_code == 0
    assert f"Example: causal data {command}" in " ".join(result.output.split())
