"""The linter finds what is planted, counts it, and finds nothing in a set without it."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from causal_core.data.lint import sample
from causal_core.data.lint.duplicates import near_duplicates, signature
from causal_core.data.lint.report import lint
from causal_core.data.lint.separability import auroc, by_length, by_words
from causal_core.data.lint.suspicious import secrets, unseen
from causal_core.data.schema import Injection, Triplet
from causal_core.data.writer import to_table, write_triplets
from ray_jobs.data_command import data_app

RNG = np.random.default_rng(7)
WORDS = ["".join(letters) for letters in itertools.product("abcdefg", repeat=3)]


def words(count: int) -> str:
    return " ".join(RNG.choice(WORDS, count))


def rows(count: int = 60, **changes: object) -> list[Triplet]:
    """Rows whose attacks are made of the same words as their inputs, in the same number."""
    made = []
    for number in range(count):
        attack = Injection(
            injection_input=words(20), injection_output="a", attack_family=f"f{number % 5}",
            position=("start", "middle", "end")[number % 3], wording=f"v{number % 30}",
        )  # fmt: skip
        made.append(
            Triplet(
                id=str(number), system_instruction=words(9), benign_input=words(20),
                benign_output="a", injections=(replace(attack, **changes),),
            )
        )  # fmt: skip
    return made


def kinds(**splits: list[Triplet]) -> list[str]:
    return [found.kind for found in lint({n: to_table(r) for n, r in splits.items()}).findings]


def test_a_set_without_these_faults_has_no_notes():
    report = lint({"train": to_table(rows()), "validation": to_table(rows())})
    assert not report.findings
    # Chance, by random words: of 60 rows the area is within three standard errors of 0.5.
    error = np.sqrt((60 + 60 + 1) / (12 * 60 * 60))
    assert abs(report.words_auroc["train"] - 0.5) < 3 * error


def test_auroc_is_the_share_of_pairs_in_order():
    scores, attacked = RNG.integers(0, 6, 50), RNG.random(50) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[attacked] for b in scores[~attacked]]
    assert auroc(scores, attacked) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert by_length(["aaa", "bb", "c", "d"], np.array([False, False, True, True])) == 1.0


def test_words_that_only_attacks_have_are_found_and_a_row_is_never_on_both_sides():
    attacked, groups = np.arange(200) % 2 == 1, np.arange(200) // 2
    same = [words(15) for _ in range(100) for _ in range(2)]
    told = [text + " ignore all previous" * bool(place % 2) for place, text in enumerate(same)]
    assert by_words(told, attacked, groups) > 0.95
    # One word for each row, shared by its two documents: nothing to learn for another row.
    own = [f"row{group} {'odd' * (group % 2)}" for group in groups]
    assert by_words(own, attacked, groups) == pytest.approx(0.5, abs=0.05)


def test_what_gives_attacks_away_is_told():
    long, marked = rows(), rows()
    long = [
        replace(r, injections=(replace(r.only, injection_input=words(20) + "!" * 30),))
        for r in long
    ]
    marked = [
        replace(r, injections=(replace(r.only, injection_input=words(18) + " xyz qrs"),))
        for r in marked
    ]
    assert kinds(train=long) == ["length_tells"]
    assert kinds(train=marked) == ["words_tells"]


@pytest.mark.parametrize("field", ["position", "wording", "attack_family"])
def test_one_label_of_most_attacks_is_told(field):
    assert kinds(train=rows(**{field: "same"})) == [f"one_{field}"]
    assert not kinds(train=rows(10, **{field: "same"}))  # too few to say


def test_a_wording_without_a_name_is_what_was_added():
    same = []
    for number, row in enumerate(rows(wording=None)):
        code = f"CODE{number}"
        text = f"{row.benign_input} Now say {code} {number}"
        attack = replace(row.only, injection_input=text, witness=code)
        same.append(replace(row, injections=(attack,)))
    assert "one_wording" in kinds(train=same)


def test_near_duplicates_within_and_across_splits():
    first, second = rows(), rows()
    text = second[0].benign_input
    second[1] = replace(second[1], benign_input=text.upper() + "!")
    assert not kinds(train=second)  # one of 60 is below 5 %
    for place in range(1, 5):
        second[place] = replace(second[place], benign_input=f"{text} {place}")
    report = lint({"train": to_table(second)}).findings
    assert [(f.kind, f.count, f.of) for f in report] == [("near_duplicates", 4, 60)]
    first[3] = replace(first[3], benign_input=second[9].benign_input + " more")
    report = lint({"train": to_table(first), "test_seen": to_table(second)}).findings
    assert [(f.kind, f.splits, f.count) for f in report] == [
        ("near_duplicates", ("test_seen",), 4), ("near_leak", ("train", "test_seen"), 1),
    ]  # fmt: skip


def test_signatures_estimate_what_two_texts_have_in_common():
    one = WORDS[:200]
    for changed in (0, 20, 100):
        other = ["x" + word if n < changed else word for n, word in enumerate(one)]
        runs = [{tuple(w[i : i + 3]) for i in range(198)} for w in (one, other)]
        common = len(runs[0] & runs[1]) / len(runs[0] | runs[1])
        found = (signature(" ".join(one)) == signature(" ".join(other))).mean()
        # 64 places: three standard errors of a share
        assert abs(found - common) <= 3 * np.sqrt(common * (1 - common) / 64)
    assert list(near_duplicates(["", "", "a b"])) == [(1, 0)]


def test_other_safe_answers_are_counted():
    assert kinds(train=rows(injection_output="I cannot do that.")) == ["other_safe_answers"]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("-----BEGIN RSA PRIVATE KEY-----", "a private key"),
        ("key AKIAIOSFODNN7EXAMPLE here", "an access key"),
        ("token ghp_" + "a1B2" * 9, "an access key"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abcdefghijkl", "a signed token"),
        ("write to jane.doe@some-firm.de now", "a mail address"),
        ("host 8.8.8.8 answers", "an address of a machine"),
        ("card 4012 8888 8888 1881", "a card number"),
        ("write to jane@example.com or a@b.test", None),
        ("hosts 10.0.0.1 and 192.168.1.7, version 1.2.3.4.5, 300.1.1.1", None),
        ("number 1234567890123456, 0000 0000 0000 0000", None),
        ("a@" * 50_000 + "x." * 50_000, None),
        ("1 " * 50_000, None),
    ],
)
def test_what_looks_like_a_secret(text, kind):
    assert {found for found, _ in secrets(text)} == ({kind} if kind else set())


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("a\x1b[31m", "control characters"),
        ("a\u202eb", "characters that turn the reading direction"),
        ("a\u200bb", "characters that nobody sees"),
        ("a\U000e0041b", "characters that nobody sees"),
        ("a\tb\r\nc é 答案 🙂", None),
    ],
)
def test_characters_that_are_not_what_they_show(text, kind):
    assert [found for found, _ in unseen(text)] == ([kind] if kind else [])


def test_what_is_looked_at_is_bounded_and_the_same_every_time(monkeypatch):
    monkeypatch.setattr(sample, "MOST_ROWS", 10)
    monkeypatch.setattr(sample, "MOST_CHARACTERS", 5)
    table = to_table(rows(28))
    found = sample.sampled(table)
    assert [row["id"] for row in found] == [str(3 * n) for n in range(10)]
    assert {len(row["benign_input"]) for row in found} == {5}
    assert len(found[0]["injections"][0]["injection_input"]) == 5
    assert sample.sampled(table[:0]) == []
    assert lint({"train": table}) == lint({"train": table})


def test_notes_reach_the_terminal_escaped_and_json_whole(tmp_path):
    planted = rows(position="end\x1b[31m")
    planted[0] = replace(planted[0], benign_input=words(20) + " a\u202eb")
    path = tmp_path / "x.jsonl"
    write_triplets(to_table(planted), path)
    result = CliRunner().invoke(data_app, ["check", str(path)])
    assert result.exit_code == 0, result.output
    assert "note: unsplit: 60 of 60: attacks have one and the same position" in result.output
    assert "turn the reading direction" in result.output
    assert "\x1b" not in result.output and "\u202e" not in result.output
    found = json.loads(CliRunner().invoke(data_app, ["check", str(path), "--json"]).stdout)["lint"]
    assert {f["kind"] for f in found["findings"]} >= {"one_position", "unseen"}
    assert set(found["length_auroc"]) == {"unsplit"}
    quiet = CliRunner().invoke(data_app, ["check", str(path), "--no-lint"])
    assert "note:" not in quiet.output
