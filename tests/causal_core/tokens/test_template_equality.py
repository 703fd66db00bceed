"""The ids of our prompts and labels are those of the model's own chat template, whatever the
tokenizer; and in hostile text nothing of the template can be said (invariant I9)."""

from __future__ import annotations

import copy
import itertools
import re
from functools import cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from causal_core.errors import ModelError
from causal_core.tokens.prompts import PromptEncoder, build_prompt_encoder
from tests.tokenizer_zoo import KINDS, SPECIALS, TEMPLATES, zoo_tokenizer

COMBINATIONS = list(itertools.product(KINDS, TEMPLATES))
words = st.sampled_from(
    ["Extract", "the city,", "of Oslo.", "São Paulo", "12 + 30", "答案", "I'm", "(a)", "x", "Ünï"]
)
ordinary = st.lists(words, min_size=1, max_size=6).flatmap(
    lambda parts: st.sampled_from([" ", "\n", "\n\n", "  ", " \n- "]).map(lambda s: s.join(parts))
)
texts = st.tuples(ordinary, ordinary, ordinary)


@cache
def encoder_of(kind: str, template: str) -> PromptEncoder:
    return build_prompt_encoder(zoo_tokenizer(kind, template))


def template_ids(encoder: PromptEncoder, system: str, *turns: str) -> list[int]:
    """What `apply_chat_template` gives; S at the head of the first input where there is no role."""
    source = encoder.tokenizer.chat_template.replace("strftime_now('%d %B %Y')", "'26 July 2024'")
    roles = itertools.cycle(["user", "assistant"])
    messages = [{"role": r, "content": t} for r, t in zip(roles, turns, strict=False)]
    for start in (
        [{"role": "system", "content": system}, *messages],
        [{"role": "user", "content": f"{system}\n\n{turns[0]}"}, *messages[1:]],
    ):
        try:
            return encoder.tokenizer.apply_chat_template(
                start, chat_template=source, add_generation_prompt=len(turns) % 2 == 1
            )["input_ids"]
        except Exception:  # noqa: BLE001 - no system role
            continue
    raise AssertionError("the template takes neither form")


@pytest.mark.parametrize(("kind", "template"), COMBINATIONS)
@settings(max_examples=12, deadline=None)
@given(texts=texts)
def test_prompt_and_label_are_the_templates(kind, template, texts):
    encoder = encoder_of(kind, template)
    system, user, answer = texts
    prompt, label = encoder.prompt_ids(system, user), encoder.answer_ids(answer)
    assert prompt == template_ids(encoder, system, user)
    whole = template_ids(encoder, system, user, answer)
    if encoder.ending:
        # A prompt that ends with a space is no prefix of the answered conversation in tokens.
        assert whole[: len(prompt)] != prompt or whole[len(prompt) :][: len(label)] == label
    else:  # the end is ours, and the last word may merge with what the template writes instead
        read = encoder.tokenizer.decode
        assert read(whole).startswith(read([*prompt, *label[:-1]]))
    assert label[-1] == encoder.end_of_answer and encoder.end_of_answer not in label[:-1]


def _wide(text: str) -> str:
    """ASCII as full-width characters, which some tokenizers fold back."""
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)


MARKERS = (
    *SPECIALS, "<tool>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "<|user|>", "<|assistant|>",
    "USER:", "ASSISTANT:", "Human:", "Assistant:", "### Input:", "### Response:",
)  # fmt: skip
markers = st.sampled_from(MARKERS)
hostile = st.lists(
    markers
    | markers.map(_wide)
    | markers.map(str.swapcase)
    | markers.map(lambda m: m.replace(" ", "▁"))
    | markers.flatmap(lambda m: st.integers(1, len(m)).map(lambda cut: m[:cut]))
    | st.text(alphabet="<>|/[]:\n\u200b ▁#AB\u0301", max_size=4),
    min_size=1,
    max_size=8,
).map("".join)


@pytest.mark.parametrize(("kind", "template"), COMBINATIONS)
@settings(max_examples=25, deadline=None)
@given(text=hostile, other=hostile)
@example(text="<unk>", other="<unkHuman:")  # a `k` that the vocabulary lacks is no part of a word
@example(text="éHuman: éUSER:", other="漢Assistant:")
def test_hostile_text_says_nothing_of_the_template(kind, template, text, other):
    encoder = encoder_of(kind, template)

    def shape(ids):
        """Control tokens in order, and how often each role marker can be read."""
        read = encoder.tokenizer.decode(ids)
        control = [i for i in ids if i in encoder.control_ids]
        # `USER:` inside a word is no role marker.
        word = {m: r"(?<!\w)" if m[0].isalnum() else "" for m in encoder.plain.markers}
        return control, {m: len(re.findall(word[m] + re.escape(m), read)) for m in word}

    for hostile_ids, harmless_ids in (
        (encoder.prompt_ids(text, other), encoder.prompt_ids("x", "x")),
        (encoder.answer_ids(text), encoder.answer_ids("x")),
        (encoder.openings_ids([text])[0], encoder.openings_ids(["x"])[0]),
    ):
        control, found = shape(hostile_ids)
        expected_control, expected = shape(harmless_ids)
        assert control == expected_control
        assert all(found[m] <= expected[m] for m in found)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("vicuna", {"USER:", "ASSISTANT:"}),
        ("open_space", {"Human:", "Assistant:"}),
        ("llama2", {"[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"}),
        ("zephyr", {"<|system|>", "<|user|>", "<|assistant|>"}),
        ("alpaca", {"### Input:", "### Response:"}),
        ("chatml", set()),  # words behind a control token stay words
        ("thinking", set()),
    ],
)
def test_role_markers_are_read_off_the_templates_own_literals(template, expected):
    assert set(encoder_of("llama_legacy", template).plain.markers) == expected


_AROUND = (
    "{{% for m in messages %}}{{{{ '<|start|>' + m['role'] + '\n' }}}}{content}"
    "{{{{ '<|end|>\n' }}}}{{% endfor %}}"
    "{{% if add_generation_prompt %}}{{{{ '<|start|>assistant\n' }}}}{{% endif %}}"
)


@pytest.mark.parametrize(
    "content",
    ["{{ m.content|upper }}", "{{ m.content|lower }}", "{{ m.content|e }}",
     "{{ m.content|tojson }}", "{{ m.content|replace('\n', ' ') }}", "{{ m.content[:200] }}",
     "{{ m.content|truncate(500) }}", "{{ m.content|indent(2) }}", "{{ m.content.strip('.!') }}",
     "{{ m.content.split()|join(' ') }}", "{{ m.content|length }} {{ m.content }}",
     "{% if m.content|length > 60 %}LONG {% endif %}{{ m.content }}",
     "{% if m.content[0] == '/' %}command {% endif %}{{ m.content }}"],
)  # fmt: skip
def test_a_template_that_changes_texts_is_refused(content):
    tokenizer = copy.copy(zoo_tokenizer("byte_level", "chatml"))
    tokenizer.chat_template = _AROUND.format(content="{{ m.content }}")
    build_prompt_encoder(tokenizer)
    tokenizer.chat_template = _AROUND.format(content=content)
    with pytest.raises(ModelError, match="prompts of training would not be those of the template"):
        build_prompt_encoder(tokenizer)


def test_a_date_in_the_template_is_fixed():
    encoder = encoder_of("byte_level", "today")
    assert "26 July 2024" in encoder.template.before
    assert encoder.fingerprint() == build_prompt_encoder(encoder.tokenizer).fingerprint()


def test_arguments_of_the_template_are_used_and_are_part_of_the_fingerprint():
    tokenizer = zoo_tokenizer("byte_level", "thinking")
    thinking, plain = (
        build_prompt_encoder(tokenizer, {"enable_thinking": value}) for value in (True, False)
    )
    assert plain.template.after.endswith("</think>\n\n") and not plain.template.lead
    assert thinking.template.lead == "<think>\n\n</think>\n\n"
    assert plain.fingerprint() != thinking.fingerprint()
    # What the template writes before the answer is no part of the answer.
    assert thinking.decode(thinking.answer_ids("Oslo")) == "Oslo"
    with pytest.raises(ModelError, match="tokenize is no variable"):
        build_prompt_encoder(tokenizer, {"tokenize": True})


def test_added_words_are_words_and_unknown_characters_are_no_control_tokens():
    tokenizer = copy.deepcopy(zoo_tokenizer("wordpiece", "chatml"))
    tokenizer.add_tokens(["covid19"])
    encoder = build_prompt_encoder(tokenizer)
    assert tokenizer.convert_tokens_to_ids("covid19") in encoder.prompt_ids("about covid19", "x")
    assert tokenizer.unk_token_id in encoder.prompt_ids("ᚠᛇᚻ", "x")


BARE = (
    "{% for m in messages %}{{ m['role'] + '\n' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "wordpiece"])
@pytest.mark.parametrize("text", ["assistant\nSure", "Hi\nassistant", "a\nassistant\nb"])
def test_a_role_that_is_a_line_of_its_own_is_none_in_a_text_even_at_its_ends(kind, text):
    tokenizer = copy.deepcopy(zoo_tokenizer(kind, "chatml"))
    tokenizer.chat_template = BARE
    encoder = build_prompt_encoder(tokenizer)
    for system, user in ((text, "x"), ("x", text)):
        lines = tokenizer.decode(encoder.prompt_ids(system, user)).split("\n")
        assert [line for line in lines if line == "assistant"] == ["assistant"]
    said = tokenizer.decode(encoder.prompt_ids("x", "the assistant said"))
    assert "the assistant said" in said  # inside a line it is a word
