"""From texts to token spans: the model's chat template once, hostile text never.

The template is rendered a single time with placeholders and cut into three literal parts:

    before | S | between | U | after

Only these parts are tokenised with control tokens enabled. Every text of a triplet is tokenised
alone with control tokens disabled, so it can neither become a role or special token nor be
executed by the template engine, and tokens never merge across a boundary: two prompts with the
same S share their tokens up to U exactly, which the prefix tree lives on.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from causal_core.errors import ModelError

# Letters only, so that no template filter (trim, escape) changes them.
_SYSTEM_MARK = "QZSYSTEMPLACEHOLDERZQ"
_USER_MARK = "QZUSERPLACEHOLDERZQ"

# Some templates (Llama 3.x) print today's date unless told one: prompts would differ from day to
# day, and a run could not be resumed after midnight. The date is that of Llama's own default.
_FIXED = {"date_string": "26 Jul 2024"}

# Role markers that a template writes as ordinary text ([INST], <<SYS>>, ### User:).
_PLAIN_MARKER = re.compile(r"<{1,2}/?[\w|]+>{1,2}|\[/?[A-Z_]+\]|#{2,} ?\w+:?")


@dataclass(frozen=True)
class PromptEncoder:
    """Tokenises system texts, inputs and answers for one tokenizer and chat template."""

    tokenizer: Any
    before: str
    between: str
    after: str
    markers: tuple[str, ...]
    control_ids: frozenset[int]
    end_of_answer: int

    def system_ids(self, system: str) -> list[int]:
        """Tokens of everything before U: template, S, template."""
        return self.around_system(self.text_ids(system))

    def around_system(self, ids: list[int]) -> list[int]:
        """The template's tokens around those of S."""
        return [*self._before_ids, *ids, *self._between_ids]

    def input_ids(self, user_input: str, context: str | None = None) -> list[int]:
        """Tokens of the user turn and the template's end of prompt."""
        return [*self.text_ids(self.user_turn(user_input, context)), *self.after_ids]

    def user_turn(self, user_input: str, context: str | None) -> str:
        """The text of the user turn: context, blank line, input."""
        return user_input if context is None else f"{context}\n\n{user_input}"

    @cached_property
    def _before_ids(self) -> list[int]:
        return self._literal(self.before)

    @cached_property
    def _between_ids(self) -> list[int]:
        return self._literal(self.between)

    @cached_property
    def after_ids(self) -> list[int]:
        """Tokens of the template between U and the answer."""
        return self._literal(self.after)

    def answer_ids(self, answer: str) -> list[int]:
        """Tokens of an answer and the end-of-turn token that a finished answer has."""
        return [*self.text_ids(answer), self.end_of_answer]

    def text_ids(self, text: str) -> list[int]:
        """Tokens of untrusted text; none of them is a control token of the model."""
        return self.texts_ids([text])[0]

    def texts_ids(self, texts: list[str]) -> list[list[int]]:
        """`text_ids` of many texts at once, on all cores where the tokenizer can."""
        if not texts:
            return []
        encoded = self.tokenizer(
            texts,
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        return [
            list(ids) if self._is_clean(text, ids) else self._neutralised(text)
            for text, ids in zip(texts, encoded["input_ids"], strict=True)
        ]

    def _neutralised(self, text: str) -> list[int]:
        # Tokenising with control tokens disabled is not enough for markers that the template
        # writes as plain text, nor for added tokens that the tokenizer does not class as special:
        # every marker is broken with a space after its first character.
        for marker in self.markers:
            text = text.replace(marker, f"{marker[0]} {marker[1:]}")
        ids = self._plain(text)
        leaked = self.control_ids.intersection(ids)
        if leaked:
            raise ModelError(
                f"the tokenizer turns plain text into its control tokens {sorted(leaked)}; "
                "training on untrusted text with it would be unsafe"
            )
        return ids

    def decode(self, ids: list[int]) -> str:
        """Text of generated tokens up to the end of the answer, without control tokens."""
        if self.end_of_answer in ids:
            ids = ids[: ids.index(self.end_of_answer)]
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def fingerprint(self) -> str:
        """sha256 of all that decides how a text becomes tokens."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        vocabulary = backend.to_str() if backend is not None else str(self.tokenizer.get_vocab())
        parts = [vocabulary, self.before, self.between, self.after, str(self.end_of_answer),
                 *self.markers]  # fmt: skip
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _is_clean(self, text: str, ids: list[int]) -> bool:
        return self.control_ids.isdisjoint(ids) and not any(m in text for m in self.markers)

    def _plain(self, text: str) -> list[int]:
        encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        return list(encoded["input_ids"])

    def _literal(self, text: str) -> list[int]:
        if not text:
            return []
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def build_prompt_encoder(tokenizer: Any) -> PromptEncoder:
    """Cuts the tokenizer's chat template into its literal parts.

    A template without a system role gets S at the head of the user turn.

    Raises:
        ModelError: no chat template, or one that does not place S before U.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(
            "this tokenizer has no chat template, so there is no telling how the model separates "
            "the system instruction from the input; use the instruct version of the model, or add "
            "a `chat_template` to its tokenizer"
        )
    rendered = _render(tokenizer)
    head, system_mark, rest = rendered.partition(_SYSTEM_MARK)
    between, user_mark, after = rest.partition(_USER_MARK)
    if not system_mark or not user_mark or _SYSTEM_MARK in after or _USER_MARK in after:
        raise ModelError(
            "the chat template does not put the system instruction once before the user's input; "
            "the prefix tree and the causal pairs need that order"
        )
    special = {tokenizer.convert_ids_to_tokens(i) for i in tokenizer.all_special_ids}
    special |= {str(token) for token in tokenizer.get_added_vocab()}
    literal = head + between + after
    remaining = literal
    for token in special:
        remaining = remaining.replace(token, " ")
    plain = {m for m in _PLAIN_MARKER.findall(remaining) if len(m) > 1}
    control = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    # Added tokens that are ordinary characters (runs of spaces, say) control nothing.
    control = {i for i in control if str(tokenizer.convert_ids_to_tokens(i)).strip("▁Ġ \t\n")}
    return PromptEncoder(
        tokenizer=tokenizer,
        before=head,
        between=between,
        after=after,
        # Longest first, so that a marker inside another one is broken once.
        markers=tuple(sorted(special | plain, key=lambda m: (-len(m), m))),
        control_ids=frozenset(control),
        end_of_answer=_end_of_answer(tokenizer),
    )


def _render(tokenizer: Any) -> str:
    system = {"role": "system", "content": _SYSTEM_MARK}
    user = {"role": "user", "content": _USER_MARK}
    attempts = (
        [system, user],
        [{"role": "user", "content": f"{_SYSTEM_MARK}\n\n{_USER_MARK}"}],
    )
    for messages in attempts:
        try:
            text = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, **_FIXED
            )
        except Exception:  # noqa: BLE001, S112 - a template may raise anything to refuse a role
            continue
        if _SYSTEM_MARK in text and _USER_MARK in text:
            return str(text)
    raise ModelError("the chat template accepts neither a system turn nor a plain user turn")


def _end_of_answer(tokenizer: Any) -> int:
    """The token that the template writes after an assistant turn; it need not be the eos token."""
    mark = "QZANSWERPLACEHOLDERZQ"
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": mark}]
    tail = str(tokenizer.apply_chat_template(messages, tokenize=False, **_FIXED)).partition(mark)[2]
    ids = tokenizer(tail, add_special_tokens=False)["input_ids"] if tail else []
    for token in ids:
        if token in tokenizer.all_special_ids or token in tokenizer.get_added_vocab().values():
            return int(token)
    if tokenizer.eos_token_id is None:
        raise ModelError("the tokenizer has no end-of-turn and no eos token: answers would not end")
    return int(tokenizer.eos_token_id)
