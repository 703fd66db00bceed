"""A chat template is a program of somebody else's: what it takes has limits."""

from __future__ import annotations

import copy
import importlib.util
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from causal_core.errors import ModelError
from causal_core.tokens import template_child, template_limits
from causal_core.tokens.prompts import build_prompt_encoder
from tests.tokenizer_zoo import zoo_tokenizer

POSIX = pytest.mark.skipif(
    importlib.util.find_spec("resource") is None, reason="no limits of processes"
)
DOUBLED = (
    "{% set n = namespace(x='xx') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}"
)


def encoder_with(head: str, name: str = ""):
    tokenizer = copy.copy(zoo_tokenizer("byte_level", "chatml"))
    tokenizer.chat_template = head + tokenizer.chat_template
    tokenizer.name_or_path = name
    return build_prompt_encoder(tokenizer)


@POSIX
@pytest.mark.parametrize(
    ("head", "said"),
    [
        ("{{ 'x' * 10**10 }}", "of memory"),
        ("{% if false %}{{ 'x' * 10**10 }}{% endif %}", "of memory"),  # the compiler multiplies
        ("{% if messages|length > 2 %}{{ 'x' * (10**9 * messages|length) }}{% endif %}", "memory"),
        (DOUBLED, "of memory"),
        ("{{ 'x' * 10**7 }}", "1,048,576 characters"),
    ],
)
def test_a_template_that_grows_is_refused_in_one_sentence_with_its_file(head, said, tmp_path):
    (tmp_path / "chat_template.jinja").touch()
    with pytest.raises(ModelError, match=said) as caught:
        encoder_with(head, str(tmp_path))
    assert str(caught.value).startswith(f"{tmp_path}/chat_template.jinja: the chat template ")
    assert "\n" not in str(caught.value)


@POSIX
@pytest.mark.parametrize(
    "head",
    ["{{ 9 ** (9 ** 9) }}",
     "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"],
)  # fmt: skip
def test_a_template_that_does_not_end_is_stopped(head, monkeypatch, tmp_path):
    """A single operation, too, which nothing within the interpreter could stop; in any thread."""
    short = tmp_path / "template_child.py"  # the same with less time
    text = Path(template_child.__file__).read_text(encoding="utf-8")
    assert f"MOST_SECONDS = {template_child.MOST_SECONDS}" in text
    short.write_text(text.replace("MOST_SECONDS = 5", "MOST_SECONDS = 1"), encoding="utf-8")
    monkeypatch.setattr(template_child, "__file__", str(short))
    told: list[str] = []

    def ask() -> None:
        try:
            encoder_with(head)
        except ModelError as error:
            told.append(str(error))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert len(told) == 1
    assert "takes more than 5 s of processor time" in told[0]


def test_a_template_that_waits_for_the_clock_to_run_out_is_stopped(monkeypatch):
    monkeypatch.setattr(template_limits, "_MOST_SECONDS_IN_ALL", 0.5)
    with pytest.raises(ModelError, match="processor time"):
        encoder_with(
            "{% for a in range(99999) %}{% for b in range(9998) %}{% endfor %}{% endfor %}"
        )


@POSIX
def test_limits_that_are_lower_already_stay():
    code = (
        "import resource, runpy\n"
        "kinds = (resource.RLIMIT_AS, resource.RLIMIT_CPU)\n"
        "resource.setrlimit(kinds[0], (2**29, 2**30 + 7))\n"
        "child = runpy.run_path(__import__('sys').argv[1])\n"
        "child['_limit']()\n"
        "print([resource.getrlimit(kind)[0] for kind in kinds])\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, template_child.__file__],
        capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert said.stdout.strip() == str([2**29, template_child.MOST_SECONDS])


def test_an_ordinary_template_is_tried_once_and_its_own_refusals_are_its_own(monkeypatch):
    template_limits._tried.cache_clear()
    encoder_with("")
    monkeypatch.setattr(template_child, "__file__", "/no/such/file")
    encoder_with("")
    with pytest.raises(ModelError, match="ends the interpreter"):
        encoder_with(" ")
    monkeypatch.undo()
    with pytest.raises(ModelError, match=r"neither a system turn nor .*: 'no turns'"):
        encoder_with("{{ raise_exception('no turns') }}")
    marked = "{% generation %}{% endgeneration %}{% for m in messages %}{% continue %}{% endfor %}"
    encoder_with(
        marked + "{% set ns = namespace(a=1) %}{% if ns.a == 2 %}{{ [1]|tojson }}{% endif %}"
    )
