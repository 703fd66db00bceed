"""Fake delimiters: the nearest tokens that an input can hold, and never the template's own."""

from __future__ import annotations

import pytest
import torch

from causal_core.attack.delimiters import delimiter_kit, nearest_texts
from causal_core.attack.kit import Choice
from causal_core.attack.search import Search
from causal_core.attack.target import Target
from causal_core.errors import UserError
from causal_core.generator.generate import generate_split
from causal_core.tokens.prompts import build_prompt_encoder
from tests.causal_core.evaluation.test_rows import CPU, model_of
from tests.tiny_run import tiny_tokenizer

ROWS = list(generate_split("test_novel", 3, 0))


@pytest.fixture(scope="module")
def target():
    tokenizer = tiny_tokenizer()
    return Target(model_of(tokenizer).eval(), build_prompt_encoder(tokenizer), CPU, 4000, 4)


def control_text(target):
    return next(
        text
        for text in target.encoder.markers
        if target.encoder.tokenizer.get_vocab().get(text) in target.encoder.control_ids
        and text in "".join(target.encoder.template.literals())
    )


def test_the_nearest_are_the_nearest_by_cosine(target):
    control = control_text(target)
    weight = target.model.peft_model.get_base_model().get_input_embeddings().weight.detach()
    own = target.encoder.tokenizer.get_vocab()[control]
    found = nearest_texts(target, control, 5)
    assert len(set(found)) == 5
    near = torch.nn.functional.cosine_similarity(weight, weight[own][None], dim=-1)
    ids = [target.encoder.tokenizer(t, add_special_tokens=False)["input_ids"] for t in found]
    likeness = [max(float(near[i]) for i in read) for read in ids]
    assert not any(i in target.encoder.control_ids for read in ids for i in read)
    assert likeness == sorted(likeness, reverse=True)
    best = sorted(
        (float(n) for i, n in enumerate(near) if i not in target.encoder.control_ids), reverse=True
    )
    assert likeness[0] >= best[20]  # not all can be written


def test_no_wrapper_can_become_a_control_token(target):
    kit = delimiter_kit(target)
    assert len(kit.wrappers) >= 8 and all(w.count("{payload}") == 1 for w in kit.wrappers)
    control = target.encoder.control_ids
    plain = sum(i in control for i in target.prompt(ROWS[0], ROWS[0].benign_input))
    search = Search(target, kit, 0)
    for number in range(len(kit.wrappers)):
        text, _ = kit.candidate(ROWS[0], ROWS, Choice(number, 0, 0, 0, 0), 0)
        assert sum(i in control for i in target.prompt(ROWS[0], text)) == plain
    found = search.begin(ROWS)
    search.spend(ROWS, found, 4)
    assert all(row.queries == 4 and row.attack for row in found)


def test_a_template_without_control_tokens_is_said_to_have_none():
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    tokenizer = tiny_tokenizer(template)
    target = Target(model_of(tokenizer), build_prompt_encoder(tokenizer), CPU, 4000, 4)
    with pytest.raises(UserError, match="no control tokens"):
        delimiter_kit(target)
