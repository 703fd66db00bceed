"""The fast way to tokens gives exactly those of the plain one: every kind of tokenizer and
template, texts that pose as the template, rows with everything and with next to nothing."""

from __future__ import annotations

import copy
import itertools

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, pre_tokenizers

from causal_core.data.schema import INJECTION_FIELDS, TRIPLET_SCHEMA
from causal_core.errors import UserError
from causal_core.tokens.columns import TOKEN_SCHEMA, with_tokens
from causal_core.tokens.encoding import Encoding
from causal_core.tokens.prompts import PromptEncoder, build_prompt_encoder
from causal_core.tokens.rows import token_rows
from tests.tokenizer_zoo import KINDS, SPECIALS, TEMPLATES, zoo_tokenizer

ENCODERS = {
    (kind, template): build_prompt_encoder(zoo_tokenizer(kind, template))
    for kind, template in itertools.product(KINDS, TEMPLATES)
}
ENCODER = ENCODERS["byte_level", "chatml"]
PIECES = (*SPECIALS, "<tool>", "<", "|start|>", "[/INST]", "USER:", "\n### Input:\n", "system\n",
          "words", " ", "\n", "é", "＜|end|＞", "\ud800", "▁x", "12")  # fmt: skip
texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), min_size=1, max_size=6)
text = texts.map("".join).filter(lambda t: t.isprintable() or t.strip())


def plain_ids(encoder: PromptEncoder, text: str) -> list[int]:
    """What transformers itself makes of a text."""
    return encoder.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


@st.composite
def rows(draw):
    few = draw(st.lists(text, min_size=1, max_size=4))  # so that texts come again
    some = st.sampled_from(few) | text
    maybe = st.none() | some
    made = []
    for number in range(draw(st.integers(1, 4))):
        injections = [
            dict.fromkeys(INJECTION_FIELDS)
            | {"injection_input": draw(some), "injection_output": draw(some | st.just(""))}
            | {"attack_output": draw(maybe), "witness": draw(maybe), "attack_family": "f"}
            for _ in range(draw(st.integers(0, 3)))
        ]
        made.append(
            dict.fromkeys(TRIPLET_SCHEMA.names)
            | {"id": str(number), "system_instruction": draw(some), "context": draw(maybe)}
            | {"benign_input": draw(some), "benign_output": draw(some | st.just(""))}
            | {"benign_cf_input": draw(maybe), "injections": injections}
        )
    return [_well_formed(row) for row in made]


def _well_formed(value):
    """The reader lets no half of a surrogate pair through."""
    if isinstance(value, dict):
        return {key: _well_formed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_well_formed(item) for item in value]
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def fast(rows, encoder):
    return with_tokens(pa.RecordBatch.from_pylist(rows, schema=TRIPLET_SCHEMA), encoder)


def assert_same_as_plain(rows, encoder):
    try:
        expected = pa.RecordBatch.from_pylist(token_rows(rows, encoder), schema=TOKEN_SCHEMA)
    except UserError as error:  # an empty span, a text that cannot be made safe
        with pytest.raises(UserError) as found:
            fast(rows, encoder)
        assert str(found.value) == str(error)
        return
    batch = fast(rows, encoder)
    batch.validate(full=True)
    assert batch.to_pylist() == expected.to_pylist()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(rows=rows(), template=st.sampled_from(sorted(TEMPLATES)))
def test_many_rows_at_once_get_the_tokens_of_each_alone(kind, rows, template):
    assert_same_as_plain(rows, ENCODERS[kind, template])


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(before=text, after=text)
def test_a_text_may_be_cut_where_it_is_said(kind, before, after):
    """The ids of the whole, hostile text on both sides, are those of both parts."""
    encoder = ENCODERS[kind, "chatml"]
    before, after = (part.encode("utf-8", "replace").decode() for part in (before, after))
    literal = encoder.template.between
    cut = encoder.encoding.cut(literal)
    assert cut is not None and literal[cut:].startswith("<|start|>")
    parts = (before + literal[:cut], literal[cut:] + after)
    whole = encoder.tokenizer("".join(parts), add_special_tokens=False)["input_ids"]
    first, second = encoder.encoding.of_texts(parts).lists()
    assert first + second == whole


@settings(deadline=None)
@given(st.lists(text, max_size=4))
def test_ids_are_those_of_the_tokenizer(several):
    several = [text.encode("utf-8", "replace").decode() for text in several]
    expected = [plain_ids(ENCODER, text) for text in several]
    assert ENCODER.encoding.of_texts(several).lists() == expected


def test_a_system_text_that_rows_share_is_tokenised_once(monkeypatch):
    seen = []
    of_texts = Encoding.of_texts
    monkeypatch.setattr(
        Encoding, "of_texts", lambda self, texts: seen.extend(texts) or of_texts(self, texts)
    )
    row = dict.fromkeys(TRIPLET_SCHEMA.names) | {
        "system_instruction": "Extract the city.", "benign_output": "Oslo", "injections": [],
    }  # fmt: skip
    inputs = ("Oslo is cold.", "Oslo is warm.", "Oslo is cold.")
    fast([row | {"id": str(i), "benign_input": text} for i, text in enumerate(inputs)], ENCODER)
    assert sum("Extract the city." in text for text in seen) == 1
    assert sum("Oslo is cold." in text for text in seen) == 1


@pytest.mark.parametrize(
    "demand", [{"lstrip": True}, {"single_word": True}, {"normalized": True}, None]
)
def test_a_token_that_wants_something_of_its_surroundings_cuts_nothing(demand):
    tokenizer = copy.deepcopy(zoo_tokenizer("byte_level", "chatml"))
    another = AddedToken("<|start|>", **demand) if demand else AddedToken("m<|start|>")
    tokenizer.add_tokens([another], special_tokens=demand is None)
    tokenizer.backend_tokenizer.add_special_tokens([another])
    assert Encoding(tokenizer).cut("\n<|start|>user\n") is None


def test_a_pre_tokenizer_written_in_python_cuts_nothing():
    class Own:
        def pre_tokenize(self, pretok):
            pretok.split(lambda _, part: part.split(" ", "isolated"))

    tokenizer = copy.deepcopy(zoo_tokenizer("byte_level", "chatml"))
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.PreTokenizer.custom(Own())
    assert Encoding(tokenizer).cut("<|end|>\n<|start|>user\n") is None


def test_a_tokenizer_that_was_told_to_cut_texts_does_not_cut_these():
    tokenizer = copy.deepcopy(zoo_tokenizer("byte_level", "chatml"))
    encoding = Encoding(tokenizer)
    whole = encoding.of_texts(["several words of a text"]).lists()
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    assert encoding.of_texts(["several words of a text"]).lists() == whole
