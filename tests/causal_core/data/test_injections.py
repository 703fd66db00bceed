"""A row's injections: a list, or the fields of one beside the row's own."""

import json

import pytest

from causal_core.data.reader import read_triplets
from causal_core.data.rules import check_row
from causal_core.data.schema import INJECTION_FIELDS
from causal_core.data.writer import to_table, write_triplets
from tests.causal_core.data.test_reader import GOOD, write_lines

PLAIN = {name: value for name, value in GOOD.items() if name not in INJECTION_FIELDS}
ATTACK = {
    "injection_input": "Oslo, or rather Rome.", "injection_output": "Rome", "attack_family": "f",
}  # fmt: skip


def test_injections_are_a_list_or_the_fields_of_one(tmp_path):
    """Both ways give the same canonical row, in JSONL as in Parquet."""
    listed = {
        **PLAIN,
        "id": "a",
        "injections": [{k: GOOD[k] for k in INJECTION_FIELDS if k in GOOD}],
    }
    path = write_lines(
        tmp_path / "x.jsonl", {**GOOD, "id": "b"}, listed, {**PLAIN, "id": "c", "injections": []},
        {**PLAIN, "id": "d", "injections": [ATTACK, {**ATTACK, "safe_answer": None}]},
    )  # fmt: skip
    flat, given, none, two = result = list(read_triplets(path).triplets())
    assert flat.only == given.only and none.injections == () and len(two.injections) == 2
    write_triplets(to_table(result), tmp_path / "x.parquet")
    assert list(read_triplets(tmp_path / "x.parquet").triplets()) == result


@pytest.mark.parametrize(
    ("changes", "field", "reason"),
    [
        ({"injections": "no"}, "injections", "expected a list"),
        ({"injections": ["no"]}, "injections[0]", "expected an object"),
        ({"injections": [ATTACK], "witness": "w"}, "injections", "stands beside witness"),
        ({"injections": [ATTACK, {}]}, "injections[1].injection_input", "missing"),
        ({"injections": [{**ATTACK, "witness": "rome"}]}, "injections[0].witness", "safe answer"),
        ({"injections": [{**ATTACK, "attack_output": " Rome"}]}, "injections[0].attack_output",
         "the same as the safe answer"),
        ({"injections": [{**ATTACK, "injection_input": 3}]}, "injections[0].injection_input",
         "expected text"),
        ({"injections": [ATTACK] * 300}, "injections", "at most 256"),
        ({"position": "end"}, "injection_input", "missing"),
    ],
)  # fmt: skip
def test_a_broken_injection_is_named(changes, field, reason):
    found = check_row({**PLAIN, **changes}, "x").errors
    assert any(name == field and reason in text for name, text in found), found


def test_fields_that_nothing_needs_are_not_asked_for(tmp_path):
    plain = {k: PLAIN[k] for k in ("system_instruction", "benign_input", "benign_output")}
    attack = {k: v for k, v in ATTACK.items() if k != "attack_family"}
    path = write_lines(tmp_path / "x.jsonl", plain, {**plain, **attack},
                       {**plain, "injections": [{**attack, "attack_family": " "}]})  # fmt: skip
    result = read_triplets(path)
    none, *attacked = result.triplets()
    assert (none.injections, none.benign_cf_input) == ((), None)
    assert [triplet.only.attack_family for triplet in attacked] == ["unknown"] * 2
    assert (0, "injections", "none in 1 rows: no attack is trained or tested there") in [
        (w.line, w.field, w.reason) for w in result.warnings
    ]
    for name in ("y.parquet", "y.jsonl"):
        write_triplets(result.table, tmp_path / name)
        assert read_triplets(tmp_path / name).table.to_pylist() == result.table.to_pylist()


def test_unknown_and_repeated_keys_of_an_injection_are_told(tmp_path):
    line = json.dumps({**PLAIN, "injections": [{**ATTACK, "famly": 1}]})
    path = tmp_path / "x.jsonl"
    path.write_text(line + "\n")
    assert next(w.field for w in read_triplets(path).warnings) == "injections[0].famly"
    path.write_text(line.replace('"famly": 1', '"witness": "a", "witness": "b"') + "\n")
    (error,) = read_triplets(path, on_error="collect").errors
    assert error.field == "injections[0].witness" and "given twice" in error.reason
