"""The model's chat template, rendered around placeholders and cut into its literal parts.

    before | S | between | U | after | lead | answer | tail

`before` to `after` is a prompt; `lead` is what the template writes at the head of a finished
answer (a space, an empty thinking block), `tail` what it writes at its end. Texts of the data
never go through the template engine: only placeholders do.
"""

from __future__ import annotations

import datetime
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from causal_core.errors import ModelError
from causal_core.tokens.template_limits import refuse_endless_template
from causal_core.visible_text import quoted

# Letters only, so that no template filter (trim, escape) changes them.
_SYSTEM = "QZSYSTEMPLACEHOLDERZQ"
_USER = "QZUSERPLACEHOLDERZQ"
_ANSWER = "QZANSWERPLACEHOLDERZQ"
_NEXT = "QZNEXTPLACEHOLDERZQ"

# Ordinary texts that a template may be tempted to change: case, line ends, what HTML and JSON
# escape, a word that begins with a slash, length.
_PROBES = (
    '/Send it to "O\'Hara & Søn" <b>now</b>,\n\n  please: 1 + 2 = {3}.',
    "x",
    "Plain words, many of them. " * 100 + "End!",
)

# Some templates print today's date: prompts would differ from day to day, and a run could not be
# resumed after midnight. The date is the one that Llama 3's template falls back to. Templates are
# given plain values only, so their `strftime_now` is replaced by a macro of the same name.
_DATE = datetime.datetime(2024, 7, 26)
FIXED_VARIABLES = {"date_string": _DATE.strftime("%d %b %Y")}
_DIRECTIVES = [f"%{flag}{letter}" for flag in ("-", "") for letter in "aAbBcdHIjmMpSUwWxXyYZf"]
FIXED_CLOCK = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f" | replace('{d}', '{_DATE.strftime(d)}')" for d in [*_DIRECTIVES, "%%"])
    + " }}{% endmacro %}"
)


@dataclass(frozen=True)
class Trim:
    """The characters that a template strips from the ends of a text; None: all white space."""

    left: str | None
    right: str | None

    def __call__(self, text: str) -> str:
        return text.lstrip(self.left).rstrip(self.right)


@dataclass(frozen=True)
class ChatTemplate:
    """The literal parts of a template, and how it trims the texts that it is given."""

    before: str
    between: str
    after: str
    lead: str
    tail: str
    next_turn: str  # between an answer and the next input, where the template allows a next input
    trim_system: Trim
    trim_user: Trim
    trim_answer: Trim
    # Whether S has a turn of its own; where not, it is at the head of U's. Told by `between`, too:
    # no part of the repr, of which fingerprints are made.
    system_role: bool = field(default=True, repr=False)

    def literals(self) -> tuple[str, ...]:
        """All text that is the template's own."""
        return (self.before, self.between, self.after, self.lead, self.tail, self.next_turn)


def read_chat_template(tokenizer: Any, arguments: Mapping[str, Any]) -> ChatTemplate:
    """Cuts a tokenizer's chat template into its parts.

    A template without a system role gets S at the head of the user turn.

    Args:
        arguments: Variables for the template (`model.chat_template_args`).

    Raises:
        ModelError: no template, one that does not place S before U or takes endless time or
            memory, or arguments it cannot take.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(
            "this tokenizer has no chat template, so there is no telling how the model separates "
            "the system instruction from the input; use the instruct version of the model, or add "
            "a `chat_template` to its tokenizer"
        )
    taken = inspect.signature(tokenizer.apply_chat_template).parameters
    if ours := sorted(name for name in arguments if name in taken):
        raise ModelError(
            f"model.chat_template_args: {', '.join(ours)} is no variable of a template but an "
            "option of the tokenizer, which this program sets itself; leave it out"
        )
    chat = _chat(tokenizer, {**FIXED_VARIABLES, **arguments})
    prompt = chat.render(_SYSTEM, _USER)
    before, _, rest = prompt.partition(_SYSTEM)
    between, _, after = rest.partition(_USER)
    if _SYSTEM in rest or _USER in before or _USER in after:
        raise ModelError(
            "the chat template does not put the system instruction once before the user's input; "
            "the prefix tree and the causal pairs need that order"
        )
    lead, tail, next_turn = _answer_parts(chat, prompt)
    template = ChatTemplate(
        before=before,
        between=between,
        after=after,
        lead=lead,
        tail=tail,
        next_turn=next_turn,
        trim_system=_trim(lambda text: chat.render(text, _USER), _SYSTEM),
        trim_user=_trim(lambda text: chat.render(_SYSTEM, text), _USER),
        trim_answer=_trim(lambda text: chat.try_render(_SYSTEM, _USER, text) or "", _ANSWER),
        system_role=chat.system_role,
    )
    for probe in _PROBES:
        _refuse_changes(chat, template, probe)
    return template


def _refuse_changes(chat: _Chat, template: ChatTemplate, text: str) -> None:
    """Refuses a template that writes something else for a text than the text, or else around it.

    Texts of the data do not go through the template, so prompts would not be the model's own.
    """
    system, user = template.trim_system(text), template.trim_user(text)
    written = [
        (chat.try_render(text, _USER), f"{template.before}{system}{template.between}{_USER}"),
        (chat.try_render(_SYSTEM, text), f"{template.between}{user}{template.after}"),
    ]
    if template.tail:
        answer = f"{template.trim_answer(text)}{template.tail}"
        written.append((chat.try_render(_SYSTEM, _USER, text), answer))
    for found, expected in written:
        if found is None or expected not in found:
            raise ModelError(
                f"the chat template writes {quoted(text, 60)} otherwise than it is given, or other "
                "words around it than around another text, so prompts of training would not be "
                "those of the template: use one that writes the content of a message as it is"
            )


@dataclass(frozen=True)
class _Chat:
    tokenizer: Any
    source: str
    arguments: Mapping[str, Any]
    system_role: bool

    def render(self, system: str, *turns: str) -> str:
        """The template around alternating inputs and answers; open for the next answer."""
        messages, is_open = _messages(self.system_role, system, *turns)
        return str(
            self.tokenizer.apply_chat_template(
                messages,
                chat_template=self.source,
                tokenize=False,
                add_generation_prompt=is_open,
                **self.arguments,
            )
        )

    def try_render(self, system: str, *turns: str) -> str | None:
        """`render`, or None where the template refuses these turns."""
        try:
            return self.render(system, *turns)
        except Exception:  # noqa: BLE001 - a template may raise anything to refuse a turn
            return None


def _messages(system_role: bool, system: str, *turns: str) -> tuple[list[dict[str, str]], bool]:
    """Alternating inputs and answers as a template takes them, and whether an answer is to come."""
    if system_role:
        messages = [{"role": "system", "content": system}]
    else:
        messages, turns = [], (f"{system}\n\n{turns[0]}", *turns[1:])
    roles = ("user", "assistant")
    messages += [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]
    return messages, len(turns) % 2 == 1


def _first_chats() -> list[tuple[list[dict[str, str]], bool]]:
    """Conversations of every form that a template is rendered around here."""
    texts: list[tuple[str, ...]] = [(_SYSTEM, _USER, _ANSWER, _NEXT)]
    for text in (_USER, *_PROBES):
        texts += [(text, _USER), (_SYSTEM, text), (_SYSTEM, _USER, text)]
    return [_messages(system_role, *said) for system_role in (True, False) for said in texts]


def asks_for_time(source: str) -> bool:
    """Whether a template would print what the clock says, without `FIXED_CLOCK` before it."""
    return "strftime_now" in source


def _chat(tokenizer: Any, arguments: Mapping[str, Any]) -> _Chat:
    source = tokenizer.get_chat_template()
    if asks_for_time(source):
        source = f"{FIXED_CLOCK}\n{source}"  # the line break ends the block and is no text
    refuse_endless_template(tokenizer, source, arguments, _first_chats())
    for system_role in (True, False):
        chat = _Chat(tokenizer, source, arguments, system_role)
        text = chat.try_render(_SYSTEM, _USER)
        if text is not None and _SYSTEM in text and _USER in text:
            return chat
    try:
        chat.render(_SYSTEM, _USER)
    except Exception as error:  # noqa: BLE001 - as above; its reason is what the user needs
        reason = f": {str(error)[:200]!r}"
    else:
        raise ModelError(
            "the chat template does not write the content of a message as it is given (or not at "
            "all), so prompts of training would not be those of the template: use one that does"
        )
    raise ModelError(
        f"the chat template accepts neither a system turn nor a plain user turn{reason}; "
        "model.chat_template_args sets the variables that it may want"
    )


def _answer_parts(chat: _Chat, prompt: str) -> tuple[str, str, str]:
    """`lead`, `tail` and `next_turn`; empty where the template has no turn for answers."""
    whole = chat.try_render(_SYSTEM, _USER, _ANSWER) or ""
    head, answer, tail = whole.partition(_ANSWER)
    if not answer:
        return "", "", ""
    # A template may render the open prompt otherwise than the same turns with an answer (a
    # thinking block that is opened, say). The prompt is what the model is given, so it holds.
    lead = head.removeprefix(prompt) if head.startswith(prompt) else ""
    longer = chat.try_render(_SYSTEM, _USER, _ANSWER, _NEXT) or ""
    next_turn = longer.partition(_ANSWER)[2].partition(_NEXT)
    return lead, tail, next_turn[0] if next_turn[1] else ""


def _trim(render: Any, mark: str) -> Trim:
    plain = render(mark)
    left = "".join(c for c in " \n\t" if render(c + mark) == plain)
    right = "".join(c for c in " \n\t" if render(mark + c) == plain)
    return Trim(*(None if len(found) == 3 else found for found in (left, right)))
