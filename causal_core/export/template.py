"""The chat template that defends: the rule of training, written in the template itself.

Training breaks markers in texts before it tokenises them (`tokens/neutralise`). Whoever serves the
model knows nothing of that and calls `apply_chat_template`; so the exported template has the same
rule in front of the original one, generated from the same markers, and gives the same ids.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import Any

from causal_core.tokens.chat_template import FIXED_CLOCK, FIXED_VARIABLES, Trim, asks_for_time
from causal_core.tokens.neutralise import Neutraliser
from causal_core.tokens.prompts import PromptEncoder
from causal_core.visible_text import quoted

_BLOCK = 256  # characters that are normalised at once to see whether any of them changes
_SURROGATES = range(0xD800, 0xE000)
_SPACES = frozenset(" ▁")  # SentencePiece takes one for the other


def defended_template(encoder: PromptEncoder, source: str) -> str:
    """A chat template of the encoder's tokenizer, `source`, with the rule of training before it.

    Its date and its variables are those of training, unless who calls it gives others.
    """
    markers = (*encoder.plain.seen_markers, *encoder.full.seen_markers)
    fold = _fold(encoder.full, {c for m in markers for c in m.text + m.before + m.after})
    words = _known_words(encoder) if any(m.text[0].isalnum() for m in markers) else None
    facts = {
        "causal_plain": _listed(encoder.plain),
        "causal_full": _listed(encoder.full),
        "causal_control": control_texts(encoder),
        "causal_fold": fold,
        "causal_words": words,
        "causal_trims": _trims(encoder),
    }
    lines = [f"{{%- set {name} = {_literal(value)} -%}}" for name, value in facts.items()]
    lines.append((files("causal_core.export") / "defence.jinja").read_text(encoding="utf-8"))
    lines += [
        f"{{%- if {name} is not defined -%}}{{%- set {name} = {_literal(value)} -%}}{{%- endif -%}}"
        for name, value in {**FIXED_VARIABLES, **encoder.arguments}.items()
        if name in source
    ]
    if asks_for_time(source):
        lines.append(FIXED_CLOCK)
    before = "\n".join(lines).rstrip().removesuffix("%}").removesuffix("-")
    # A source that begins with space keeps it, as after a block at the end of a line.
    return f"{before}%}}\n{source}" if source[:1].isspace() else f"{before}-%}}{source}"


def deviations(encoder: PromptEncoder) -> list[str]:
    """Why hostile text may get other ids from the template than from training, where it may.

    What no template can do is ask the tokenizer. Where that changes texts in ways that depend on
    their surroundings, the template breaks what training would have left whole; never the reverse.
    """
    found = []
    changing = sorted(set(map(_name, _normalizers(encoder.tokenizer))) - {""})
    if changing:
        found.append(
            f"the tokenizer normalises texts as a whole ({', '.join(changing)}), a template only "
            "character by character"
        )
    added = {t.content: t for t in encoder.tokenizer.added_tokens_decoder.values()}
    tokens = [added[text] for text in control_texts(encoder) if text in added]
    late = [
        t.content
        for t in tokens
        if t.single_word or (t.normalized and _normalizers(encoder.tokenizer))
    ]
    if late:
        found.append(
            "whether the tokenizer takes a text for one of its tokens depends on what is around "
            f"it: {', '.join(quoted(text) for text in late[:5])}"
        )
    return found


def control_texts(encoder: PromptEncoder) -> list[str]:
    """The texts of the control tokens that no prompt may have beside the template's own."""
    vocabulary = encoder.tokenizer.get_vocab()
    return [text for text in encoder.markers if vocabulary.get(text) in encoder.control_ids]


def _listed(neutraliser: Neutraliser) -> list[tuple[str, str, str, bool]]:
    """The markers as the template has them; the last says that it is none inside a word."""
    return [(m.text, m.before, m.after, m.text[0].isalnum()) for m in neutraliser.seen_markers]


def _trims(encoder: PromptEncoder) -> dict[str, tuple[str | None, str | None]]:
    t = encoder.template
    user = t.trim_user if t.system_role else Trim(t.trim_system.left, t.trim_user.right)
    trims = {"system": t.trim_system, "user": user, "assistant": t.trim_answer}
    return {role: (trim.left, trim.right) for role, trim in trims.items()}


def _fold(neutraliser: Neutraliser, alphabet: set[str]) -> dict[str, str]:
    """What the tokenizer makes of single characters that could be part of a marker, or vanish."""
    images = {}
    for start in range(0, sys.maxunicode + 1, _BLOCK):
        block = [chr(c) for c in range(start, start + _BLOCK) if c not in _SURROGATES]
        joined = "x".join(block)
        if neutraliser.seen(joined) == joined:
            continue
        for character in block:
            image = neutraliser.seen(character)
            if image == character or {image, character} <= _SPACES:
                continue
            if not image or not alphabet.isdisjoint(image.replace("▁", " ")):
                images[character] = image
    return images


def _known_words(encoder: PromptEncoder) -> str | None:
    """The word characters that the vocabulary has; None: all."""
    unknown = encoder.tokenizer.unk_token_id
    if unknown is None:
        return None
    words = [chr(c) for c in range(sys.maxunicode + 1) if chr(c).isalnum() or c == ord("_")]
    backend = getattr(encoder.tokenizer, "backend_tokenizer", None)
    if backend is None:
        encoded = encoder.tokenizer(words, add_special_tokens=False)["input_ids"]
    else:  # a third of the time: a hundred thousand words need nothing but their ids
        encoded = [e.ids for e in backend.encode_batch_fast(words, add_special_tokens=False)]
    known = [word for word, ids in zip(words, encoded, strict=True) if unknown not in ids]
    return None if len(known) == len(words) else "".join(known)


def _normalizers(tokenizer: Any) -> list[Mapping[str, Any]]:
    """The steps of the tokenizer's normaliser, in its own description."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    described = None if backend is None else json.loads(backend.to_str())["normalizer"]
    return list(_steps(described)) if described else []


def _steps(described: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    if described["type"] != "Sequence":
        return [described]
    return [step for inner in described["normalizers"] for step in _steps(inner)]


def _name(step: Mapping[str, Any]) -> str:
    """The name of a step that a template cannot follow; empty for SentencePiece's spaces."""
    spaces = {"prepend": "▁"}, {"pattern": {"String": " "}, "content": "▁"}
    if step in ({"type": "Prepend", **spaces[0]}, {"type": "Replace", **spaces[1]}):
        return ""
    return str(step["type"])


def _literal(value: Any) -> str:
    """A plain value in Jinja's notation."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(k)}: {_literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return repr(value)
