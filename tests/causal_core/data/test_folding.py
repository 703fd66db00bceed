"""Witnesses are found as a reader would find them, and only as whole words."""

from __future__ import annotations

import sys
import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from causal_core.data.folding import folded
from causal_core.data.rules import check_row
from causal_core.data.schema import contains_witness

NFD, NFC = (unicodedata.normalize(form, "São Paulo") for form in ("NFD", "NFC"))


@pytest.mark.parametrize(
    ("text", "witness", "there"),
    [
        ("答案是巴黎。", "巴黎", True),
        ("用PWNED回答", "PWNED", True),
        ("答案42。", "42", True),
        ("東京タワーです", "タワー", True),
        ("ไปกรุงเทพแล้ว", "กรุงเทพ", True),
        ("파리는 수도다", "파리", True),
        ("_PWNED_", "PWNED", True),
        ("**PWNED**", "pwned", True),
        (NFD, NFC, True),
        (NFC, NFD, True),
        ("ＰＡＲＩＳ", "PARIS", True),
        ("Pa\u200bris", "Paris", True),
        ("Pa\u00adris", "Paris", True),
        ("a\u200b\u0301b", "áb", True),
        ("I’ve been PWNED", "I've been PWNED", True),
        ("say “yes”", 'say "yes"', True),
        ("STRASSE", "Straße", True),
        ("ﬁnal", "final", True),
        ("New\u00a0York", "New York", True),
        ("New\n  York", "New York", True),
        ("comparison", "Paris", False),
        ("Parisian", "Paris", False),
        ("сравнение", "равн", False),
        ("caf\u0065\u0301s", "cafe", False),
        ("café", "caf", False),
        ("1006.5", "1006", False),
        ("3.1006", "1006", False),
        ("1,006", "006", False),
        ("1,006,000", "1,006", False),
        ("It is 1006.", "1006", True),
        ("41,42,43", "42", True),
        ("v42x", "42", False),
        ("evil.communication", "evil.com", False),
        ("see evil.com.", "evil.com", True),
        ("comparison with Paris", "Paris", True),
        ("", "Paris", False),
        ("Paris", "", False),
        ("Paris", "\u200b", False),
        ("aab aab aabaab", "aab aab aab", False),
        ("xa xa a xa", "a xa", True),
        ("İSTANBUL", "istanbul", True),
        ("Istanbul", "İstanbul", True),
        ("1,006 in all", "1006", True),
        ("1006", "1,006", True),
        ("0,006", "6", False),
        ("41,42,43", "414243", False),
        ("٤٢", "42", True),
        ("PWNED™", "PWNED", True),
        ("PWNED²", "PWNED", True),
        ("①PWNED", "PWNED", True),
        ("10²", "102", False),
        ("5½", "51", False),
        ("5㎏", "5", True),
        ("№5", "5", True),
        ("H₂O", "H2O", True),
        ("ⓅⓌⓃⒺⒹ", "PWNED", True),
        ("🅿🆆🅽🅴🅳", "PWNED", True),
        ("P̶W̶N̶E̶D̶", "PWNED", True),
        ("P\u20ddW\u20ddNED", "PWNED", True),
        ("1\ufe0f\u20e30\ufe0f\u20e3", "10", True),
        ("الــقــاهــرة", "القاهرة", True),
        ("القَاهِرَة", "القاهرة", True),
        ("أب", "اب", False),
        ("שָׁלוֹם", "שלום", True),
        ("\ufb2aלום", "שלום", True),
        ("दिल्ली", "दिल", False),
        ("twenty–five", "twenty-five", True),
        ("−5 degrees", "-5 degrees", True),
        ("½ cup", "1/2 cup", True),
        ("ŉ", "'n", True),
        ("IŞIK", "ışık", True),
        ("РАRIS", "PARIS", False),
        ("ᴘᴡɴᴇᴅ", "PWNED", False),
    ],
)
def test_witness_table(text, witness, there):
    assert contains_witness(text, witness) is there


letters = st.text(alphabet="abßÄéσςİ²½™٢巴黎กา01.,_ '’“\u200b\u0301\u00ad\u3000Ａﬁ", max_size=30)


@given(text=letters)
def test_folding_twice_is_folding_once(text):
    assert folded(folded(text)) == folded(text)


def test_each_character_is_folded_once_and_however_it_is_composed():
    """Many at a time, each between letters, which what is folded does not cross."""
    characters = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    for first in range(0, len(characters), 64):
        some = characters[first : first + 64]
        once = folded("".join(f"a{character}b" for character in some))
        assert folded(once) == once, hex(ord(some[0]))
        composed = folded(" ".join(some))
        decomposed = folded(" ".join(unicodedata.normalize("NFD", each) for each in some))
        assert decomposed == composed, hex(ord(some[0]))


@given(before=letters, witness=letters, after=letters)
def test_a_witness_between_spaces_is_found(before, witness, after):
    if folded(witness) and not unicodedata.combining(folded(witness)[0]):
        assert contains_witness(f"{before} {witness} {after}", witness)


@given(text=letters, witness=letters)
def test_nothing_is_found_that_is_not_there(text, witness):
    if contains_witness(text, witness):
        assert folded(witness) in folded(text)


@pytest.mark.parametrize(
    ("text", "witness"),
    [
        ("x" * 210_000, "x" * 1000),
        ("xa " * 70_000, "a " + "xa " * 30_000),
        ("é\u200b" * 105_000, "é"),
        ("1 " * 105_000, "1 " * 50_000 + "2"),
    ],
)
def test_a_long_row_takes_no_time(text, witness):
    start = time.process_time()
    assert not contains_witness(text, witness)
    assert time.process_time() - start < 2  # quadratic work would take minutes


def test_the_reader_looks_for_the_witness_in_the_same_way():
    row = {
        "system_instruction": "s", "benign_input": "u", "benign_output": "o",
        "benign_cf_input": "c", "injection_input": "i", "attack_family": "f",
    }  # fmt: skip
    hidden = check_row({**row, "injection_output": "Pa\u200bris", "witness": "ＰＡＲＩＳ"}, "a")
    assert [field for field, _ in hidden.errors] == ["witness"]
    unseen = check_row({**row, "injection_output": "o", "witness": "\u200b"}, "a")
    assert "nobody sees" in unseen.errors[0][1]
