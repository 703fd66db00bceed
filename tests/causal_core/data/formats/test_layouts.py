"""Rows of others are named in one line, and become ours where they have what ours need."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from causal_core.data.column_paths import ColumnPaths
from causal_core.data.formats.layouts import LAYOUTS, NoRowError, layout_of
from causal_core.data.reader import read_triplets
from causal_core.data.schema import DataError
from causal_core.errors import UserError
from tests.causal_core.data.test_reader import GOOD, row, write_lines

CASES = Path(__file__).parents[5] / "shared" / "cases" / "data"


def turns(*roles_and_texts, role="role", content="content"):
    return [{role: r, content: text} for r, text in roles_and_texts]


CHAT = turns(("system", "S"), ("user", "u"), ("assistant", "a"))
PLAIN = ("S", "u", "a")
PAIR = ("S", "u", "a", "u, say X", "a", "X")
TO_PLAIN = [
    {"messages": CHAT},
    {"messages": CHAT[1:], "system": "S"},
    {"messages": CHAT[1:], "system_prompt": "S"},
    {"messages": [{**t, "content": [{"type": "text", "text": t["content"]}]} for t in CHAT]},
    {"conversations": turns(("system", "S"), ("human", "u"), ("gpt", "a"),
                            role="from", content="value")},
    {"instruction": "S", "input": "u", "output": "a"},
]  # fmt: skip
TO_TRIPLET = [
    {"system": "S", "prompt": "u, say X", "chosen": "a", "rejected": "X", "clean_prompt": "u"},
    {"system_instruction": "S", "question": "u, say X", "chosen": "a", "rejected": "X",
     "benign_input": "u"},
    {"prompt": turns(("system", "S"), ("user", "u, say X")), "chosen": turns(("assistant", "a")),
     "rejected": turns(("assistant", "X")), "clean_input": "u"},
    {"chosen": turns(("system", "S"), ("user", "u, say X"), ("assistant", "a")),
     "rejected": turns(("system", "S"), ("user", "u, say X"), ("assistant", "X")),
     "prompt": "u, say X", "clean_input": "u"},
]  # fmt: skip


def write_parquet(path: Path, rows) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def write_array(path: Path, rows) -> Path:
    path.write_text(json.dumps(rows))
    return path


WRITERS = {
    "x.jsonl": lambda path, rows: write_lines(path, *rows),
    "x.json": write_array,
    "x.parquet": write_parquet,
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("raw", TO_PLAIN + TO_TRIPLET)
def test_a_known_layout_is_named_in_one_line_and_converted(tmp_path, raw, name):
    path = WRITERS[name](tmp_path / name, [{**raw, "id": str(n), "note": "n"} for n in range(9)])
    layout = layout_of(raw.keys())
    with pytest.raises(DataError) as caught:
        read_triplets(path)
    assert caught.value.count == 1
    command = f"causal data convert {path} OUT.jsonl makes {layout.becomes} of them"
    assert f"{layout.name}, not triplets: {command}" in str(caught.value)
    result = read_triplets(path, convert=True)
    first = next(result.triplets())
    found = (first.system_instruction, first.benign_input, first.benign_output)
    if raw in TO_TRIPLET:
        attack = first.only
        found += (attack.injection_input, attack.injection_output, attack.attack_output)
    assert found == (PAIR if raw in TO_TRIPLET else PLAIN)
    assert (first.id, len(result.table), bool(first.injections)) == ("0", 9, raw in TO_TRIPLET)
    assert next(w.field for w in result.warnings if w.line == 0) == "note"


def test_every_layout_is_tested_and_ours_is_none():
    assert {layout_of(raw.keys()) for raw in TO_PLAIN + TO_TRIPLET} == set(LAYOUTS)
    assert layout_of(GOOD.keys()) is None and layout_of({"pre_prompt": 1}.keys()) is None
    assert layout_of({**GOOD, "messages": []}.keys()) is None


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ({"messages": CHAT[1:]}, "no system prompt"),
        ({"messages": CHAT + CHAT[1:]}, "a chat of several questions, where a row has one input"),
        ({"messages": CHAT[:1]}, "its turns after the system prompt are not"),
        ({"messages": "S"}, "no list"),
        ({"messages": ["S"]}, "no object with a role"),
        ({"messages": turns(("narrator", "x"))}, "the role 'narrator'"),
        ({"messages": [*CHAT[:2], *turns(("tool", "x")), CHAT[2]]}, "a chat that uses tools"),
        (
            {"messages": [*CHAT[:2], {"role": "assistant", "content": None, "tool_calls": [{}]}]},
            "give what a tool returned as the input",
        ),
        ({"messages": turns(("user", None))}, "no text"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "not text alone"),
        ({"conversations": 3}, "no list"),
        ({"instruction": "S", "input": "", "output": "a"}, "nothing an attack could be in"),
        ({"instruction": 3, "input": "u", "output": "a"}, "no text"),
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, "--map system_instruction=KEY"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "system": "S"}, "--map benign_input=KEY"),
        ({"prompt": "p", "chosen": ["a", "b"], "rejected": "c"}, "several chosen or rejected"),
        ({"chosen": [], "rejected": []}, "does not end with an answer"),
    ],
)
def test_what_a_row_of_ours_needs_and_another_lacks_is_said(raw, reason):
    with pytest.raises(NoRowError, match=reason):
        layout_of(raw.keys()).converted(raw)


@pytest.mark.parametrize("role", ["gpt", "chatgpt", "bing", "bard"])
def test_whoever_answers_in_sharegpt_is_the_assistant(tmp_path, role):
    chat = turns(("human", "u"), (role, "a"), role="from", content="value")
    path = write_lines(tmp_path / "x.jsonl", {"system": "S", "conversations": chat})
    [found] = read_triplets(path, convert=True).triplets()
    assert (found.benign_input, found.benign_output) == ("u", "a")


def test_a_chat_that_ends_with_its_question_waits_for_an_answer(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", *[{"messages": CHAT[:2]}] * 3)
    found = read_triplets(path, convert=True, unanswered=True).triplets()
    assert [(row.benign_input, row.benign_output) for row in found] == [("u", "")] * 3
    with pytest.raises(DataError, match="let a model write it with causal data targets"):
        read_triplets(path, convert=True)


def test_rows_that_cannot_be_converted_are_summarised_and_set_aside(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", *[{"messages": CHAT[1:]}] * 5, {"messages": CHAT})
    aside = []
    result = read_triplets(path, on_error="collect", convert=True, on_bad_row=aside.append)
    assert (result.table.num_rows, result.bad_rows, len(aside)) == (1, 5, 5)
    with pytest.raises(DataError) as caught:
        result.refuse_errors()
    assert "(in 5 rows: 1, 2, 3, ...)" in str(caught.value)


def test_rows_of_another_layout_among_ours_are_counted_once(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", {"messages": CHAT}, row(), {"messages": CHAT})
    aside = []
    result = read_triplets(path, on_error="collect", on_bad_row=aside.append)
    assert (result.table.num_rows, result.bad_rows, [b.line for b in aside]) == (1, 2, [1, 3])
    assert [p.reason.split(",")[0] for p in result.errors] == [
        "2 rows hold chats (`messages`)"
    ]  # fmt: skip


@pytest.mark.parametrize("count", [1, 1400])
def test_an_unknown_layout_is_one_line_with_its_keys(tmp_path, count):
    path = write_lines(tmp_path / "x.jsonl", *[{"pre_prompt": "a", "attack": "b"}] * count)
    result = read_triplets(path, on_error="collect")
    assert (result.bad_rows, result.found_errors.count, result.warnings) == (count, 1, [])
    told = "no row has system_instruction, benign_input, benign_output, but: pre_prompt, attack; "
    assert told + "say where they are: --map FIELD=KEY" in str(result.errors[0])


def test_a_misspelt_key_is_asked_about(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", row(witness=..., witnes="x"))
    warning = next(w for w in read_triplets(path).warnings if w.field == "witnes")
    assert warning.reason == "unknown key, ignored in 1 rows; did you mean witness?"


NESTED = {
    "q": {"sys": "S", "parts": [{"text": "u"}, {"text": "u, say X"}]}, "answers": ["a", "X"],
    "benign_input": "another", "dotted.key": "medical",
}  # fmt: skip
PATHS = {
    "system_instruction": "q.sys", "benign_input": "q.parts.0.text", "benign_output": "answers.0",
    "injection_input": "q.parts.-1.text", "injection_output": "answers.0",
    "attack_output": "answers.1", "task": "dotted.key", "witness": "q.none",
}  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
def test_any_layout_is_read_by_paths_into_it(tmp_path, name):
    path = WRITERS[name](tmp_path / name, [NESTED, {**NESTED, "q": {**NESTED["q"], "sys": "T"}}])
    result = read_triplets(path, columns=ColumnPaths(PATHS))
    first, second = result.triplets()
    assert (first.system_instruction, second.system_instruction) == ("S", "T")
    assert (first.benign_input, first.benign_output, first.task) == ("u", "a", "medical")
    assert (first.only.injection_input, first.only.attack_output) == ("u, say X", "X")
    told = [(w.field, w.reason) for w in result.warnings if "no row has" in w.reason]
    assert told == [("witness", "no row has 'q.none'")]


def test_a_path_changes_nothing_where_a_row_lacks_it_and_a_slip_is_asked_about(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", row(witness=..., codeword="LANTERN"), row(id="b"))
    table = read_triplets(path, columns=ColumnPaths({"witness": "codeword"})).table
    assert [i[0]["witness"] for i in table["injections"].to_pylist()] == ["LANTERN"] * 2
    result = read_triplets(path, columns=ColumnPaths({"witness": "codword"}))
    assert "no row has 'codword'; did you mean codeword?" in [w.reason for w in result.warnings]


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        (["bening_input=q"], "no field is called 'bening_input'; did you mean benign_input?"),
        (["xyz=q"], "known: id, system_instruction"),
        (["benign_input"], "expected FIELD=PATH"),
        (["benign_input="], "expected a key or a path"),
        (["benign_input=a", "benign_input=b"], "given twice"),
        (["benign_input=" + "a." * 99], "expected a key or a path"),
    ],
)
def test_a_mapping_that_is_none_is_refused(items, reason):
    with pytest.raises(UserError) as caught:
        ColumnPaths.parsed(items)
    assert reason in str(caught.value)


@pytest.mark.skipif(not CASES.is_dir(), reason="the shared cases are not here")
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("messages.jsonl", "chats (`messages`)"),
        ("nested_msgs.parquet", "chats (`messages`)"),
        ("sharegpt.jsonl", "ShareGPT"),
        ("alpaca_secalign.json", "instructions"),
        ("dpo.jsonl", "preference pairs"),
        ("tensortrust.jsonl", "but: pre_prompt, attack"),
    ],
)
def test_files_of_others_are_named_in_one_line(name, told):
    with pytest.raises(DataError) as caught:
        read_triplets(CASES / name)
    assert caught.value.count == 1 and told in str(caught.value)
