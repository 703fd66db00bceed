"""From texts to token spans: the ids of the model's chat template, hostile text notwithstanding.

A conversation is tokenised as a whole, as `apply_chat_template` does it, because a tokenizer may
merge characters across the border of a text and its surroundings (SentencePiece takes the space
before a word into the word's token). The texts are made safe before: whatever could pose as a
control token or a role marker is broken with a space, and the ids that come out are checked: their
control tokens are those of the template around harmless texts, one by one.

The spans of a triplet are cut where its token sequences part, so a token that straddles a border
belongs to the text, and what the prefix tree shares is shared token by token.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, Protocol

import numpy as np

from causal_core.errors import ModelError, UserError
from causal_core.tokens.chat_template import ChatTemplate, read_chat_template
from causal_core.tokens.encoding import Encoding
from causal_core.tokens.neutralise import Neutraliser, Normalize, plain_markers
from causal_core.tokens.ragged import Ragged

# Part of every fingerprint: it counts the ways in which this program has made ids of texts.
_ENCODING = 3

# A text that stands before an answer where only the answer's tokens matter, and harmless texts.
_HARMLESS = "x"


class UnencodableTextError(UserError):
    """A text that stays a control token or a role marker whatever is done to it."""


class EncoderSource(Protocol):
    """An encoder, or one that is made when a text needs it (`deferred.py`)."""

    def fingerprint(self) -> str:
        """sha256 of all that decides how a text becomes tokens."""

    def largest_token(self) -> int:
        """The largest id that a text can become."""

    def made(self) -> PromptEncoder:
        """The encoder."""


@dataclass(frozen=True)
class PromptEncoder:
    """Tokenises system texts, inputs and answers for one tokenizer and chat template."""

    tokenizer: Any
    template: ChatTemplate
    plain: Neutraliser  # of role markers in ordinary characters
    full: Neutraliser  # of these and of every control token
    control_ids: frozenset[int]
    end_of_answer: int
    ending: str  # the template's text after an answer up to that token; empty: it writes none
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def markers(self) -> tuple[str, ...]:
        """What no text may contain, longest first."""
        return self.full.markers

    def user_turn(self, user_input: str, context: str | None) -> str:
        """The text of the user turn: context, blank line, input."""
        return user_input if context is None else f"{context}\n\n{user_input}"

    def prompt_ids(self, system: str, user_input: str, context: str | None = None) -> list[int]:
        """Tokens of a whole prompt, up to where the answer begins."""
        return self.prompts_ids([(system, self.user_turn(user_input, context))])[0]

    def prompts_ids(self, texts: Sequence[tuple[str, str]]) -> list[list[int]]:
        """Tokens of whole prompts, of (system, user turn), on all cores where the tokenizer can."""
        return self.prompts(texts).lists()

    def prompts(self, texts: Sequence[tuple[str, str]]) -> Ragged:
        """`prompts_ids` in one array."""
        t = self.template
        trimmed = [(t.trim_system(system), t.trim_user(turn)) for system, turn in texts]
        return self._encoded((t.before, t.between, t.after), trimmed)

    def systems_ids(self, systems: Sequence[str]) -> list[list[int]]:
        """Tokens up to where the user turn begins; in a prompt the last may have merged on."""
        return self.systems(systems).lists()

    def systems(self, systems: Sequence[str]) -> Ragged:
        """`systems_ids` in one array."""
        t = self.template
        return self._encoded((t.before, t.between), [(t.trim_system(s),) for s in systems])

    def answer_ids(self, answer: str) -> list[int]:
        """Tokens of an answer and the end-of-turn token that a finished answer has."""
        return self.answers_ids([answer])[0]

    def answers_ids(self, answers: Sequence[str]) -> list[list[int]]:
        """`answer_ids` of many answers at once."""
        return self.answers(answers).lists()

    def answers(self, answers: Sequence[str]) -> Ragged:
        """`answers_ids` in one array."""
        found = self._continuations(answers, self.ending)
        if self.ending:
            return found
        return found.beside(Ragged.of([[self.end_of_answer]] * len(found)))

    def openings_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of answers that begin with these texts and go on."""
        return self.openings(texts).lists()

    def openings(self, texts: Sequence[str]) -> Ragged:
        """`openings_ids` in one array."""
        return self._continuations(texts, "")

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated tokens up to the end of the answer, without the template's part."""
        end = self.end_of_answer
        ids = ids[: list(ids).index(end)] if end in ids else ids
        text = self._decoded(ids)
        if not self.template.lead:
            return text
        lead = self._decoded(self.encoding.of_literal(self.template.lead)).strip()
        return text.lstrip().removeprefix(lead).lstrip()

    def fingerprint(self) -> str:
        """sha256 of all that decides how a text becomes tokens."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        vocabulary = backend.to_str() if backend is not None else str(self.tokenizer.get_vocab())
        parts = [_ENCODING, vocabulary, repr(self.template), self.end_of_answer, *self.markers,
                 json.dumps(dict(self.arguments), sort_keys=True)]  # fmt: skip
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def largest_token(self) -> int:
        """The largest id of the vocabulary."""
        return max(self.tokenizer.get_vocab().values())

    def made(self) -> PromptEncoder:
        """Itself: see `EncoderSource`."""
        return self

    def _continuations(self, texts: Sequence[str], tail: str) -> Ragged:
        """Tokens of the template's lead, a text and `tail` as they follow a prompt.

        The prompt is given when an answer begins, so its tokens stand. Where a text would merge
        with its end, the answer's tokens are those after something that it does not merge with.
        """
        t = self.template
        trimmed = [(t.trim_answer(text),) for text in texts]
        cut = self.encoding.cut(t.after)
        head = _HARMLESS + t.after if cut is None else t.after[cut:]
        left = np.arange(len(texts))
        order: list[np.ndarray] = []
        parts: list[Ragged] = []
        for anchor in (head, "\n", _HARMLESS, ""):
            if not len(left) and parts:
                break
            ids = self._encoded((anchor + t.lead, tail), [trimmed[index] for index in left])
            before = self.encoding.of_literal(anchor)
            apart = ids.shared_with(Ragged.of([before] * len(ids))) == len(before)
            parts.append(ids.take(np.flatnonzero(apart), first=len(before)))
            order.append(left[apart])
            left = left[~apart]
        found = Ragged.joined(parts)
        return found if len(parts) == 1 else found.take(np.argsort(np.concatenate(order)))

    def _encoded(self, frame: tuple[str, ...], texts: Sequence[tuple[str, ...]]) -> Ragged:
        """Tokens of each row of texts inside a frame of literals, one more than texts.

        Raises:
            UnencodableTextError: some text cannot be kept from posing as the template.
        """
        encoded, faithful = self.first_try(frame, texts)
        if faithful.all():
            return encoded
        odd = np.flatnonzero(~faithful).tolist()
        broken = [tuple(self.full.broken(_well_formed(t)) for t in texts[index]) for index in odd]
        again = self.encoding.of_texts([_joined(frame, row) for row in broken])
        if not self._holds_controls_of(frame, again).all():
            raise UnencodableTextError(
                "the tokenizer takes part of the text for control tokens of the model, "
                "whatever is done to it; training on it would be unsafe: leave the row out"
            )
        places = np.arange(len(encoded))
        places[odd] = len(encoded) + np.arange(len(odd))
        return Ragged.joined([encoded, again]).take(places)

    def first_try(
        self, frame: tuple[str, ...], texts: Sequence[tuple[str, ...]]
    ) -> tuple[Ragged, np.ndarray]:
        """Tokens of texts inside a frame, of which role markers in ordinary characters are broken,
        and which of them have the frame's control tokens and no other, [texts]."""
        safe = [tuple(self.plain.broken(_well_formed(text)) for text in row) for row in texts]
        encoded = self.encoding.of_texts([_joined(frame, row) for row in safe])
        return encoded, self._holds_controls_of(frame, encoded)

    def _holds_controls_of(self, frame: tuple[str, ...], encoded: Ragged) -> np.ndarray:
        """Which sequences have the control tokens that the frame has around harmless texts."""
        harmless = _joined(frame, (_HARMLESS,) * (len(frame) - 1))
        expected = [i for i in self.encoding.of_literal(harmless) if i in self.control_ids]
        # Ids beyond the last control token are all looked up in one place behind it.
        control = self._is_control[np.minimum(encoded.values, len(self._is_control) - 1)]
        places = np.flatnonzero(control)
        owners = np.searchsorted(encoded.offsets, places, side="right") - 1
        holds = np.bincount(owners, minlength=len(encoded)) == len(expected)
        found = encoded.values[places[holds[owners]]].reshape(int(holds.sum()), len(expected))
        holds[holds] = (found == np.array(expected, np.int32)).all(axis=1)
        return holds

    @cached_property
    def _is_control(self) -> np.ndarray:
        table = np.zeros(max(self.control_ids, default=-1) + 2, bool)
        table[list(self.control_ids)] = True
        return table

    @cached_property
    def encoding(self) -> Encoding:
        """The tokenizer without any template."""
        return Encoding(self.tokenizer)

    def _decoded(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


def build_prompt_encoder(
    tokenizer: Any, arguments: Mapping[str, Any] | None = None
) -> PromptEncoder:
    """The encoder of a tokenizer and its chat template (errors as of `read_chat_template`).

    Args:
        arguments: Variables for the template (`model.chat_template_args`).
    """
    arguments = dict(arguments or {})
    template = read_chat_template(tokenizer, arguments)
    control = _control_tokens(tokenizer, "".join(template.literals()))
    turns = (template.between, template.after, template.lead, template.tail, template.next_turn)
    plain = plain_markers(turns, template.before, control)
    end, ending = _end_of_answer(tokenizer, template.tail, control)
    normalize, known = _normalize(tokenizer), _knows(tokenizer)
    return PromptEncoder(
        tokenizer=tokenizer,
        template=template,
        plain=Neutraliser(plain, normalize, known),
        full=Neutraliser(plain | control.keys(), normalize, known),
        control_ids=frozenset(control.values()) - _unknown(tokenizer),
        end_of_answer=end,
        ending=ending,
        arguments=arguments,
    )


def _well_formed(text: str) -> str:
    """Text with `?` for half of a surrogate pair, which no tokenizer takes."""
    return text if text.isascii() else text.encode("utf-8", errors="replace").decode("utf-8")


def _joined(frame: tuple[str, ...], texts: tuple[str, ...]) -> str:
    """Literals and texts in turn."""
    return frame[0] + "".join(text + part for text, part in zip(texts, frame[1:], strict=True))


def _control_tokens(tokenizer: Any, literals: str) -> dict[str, int]:
    """Every token that means something other than its characters.

    Added tokens that are ordinary words or runs of spaces control nothing, unless the template
    itself writes them.
    """
    special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    flagged = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
    added = {
        str(text): index
        for text, index in tokenizer.get_added_vocab().items()
        if text in flagged or text in literals or not _is_ordinary(text)
    }
    return {text: i for text, i in {**special, **added}.items() if text.strip("▁Ġ \t\n")}


def _is_ordinary(text: str) -> bool:
    return len(text) == 1 or all(c.isalnum() or c.isspace() or c in "▁Ġ" for c in text)


def _unknown(tokenizer: Any) -> set[int]:
    """The token of characters that the vocabulary lacks, which any text may hold."""
    roles = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return {tokenizer.unk_token_id} - {None, *roles}


def _knows(tokenizer: Any) -> Callable[[str], bool]:
    """Whether the vocabulary has a token for a character."""
    unknown = tokenizer.unk_token_id

    @cache
    def known(character: str) -> bool:
        ids = tokenizer(character, add_special_tokens=False)["input_ids"]
        return unknown is None or unknown not in ids

    return known


def _normalize(tokenizer: Any) -> Normalize | None:
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    return None if normalizer is None else normalizer.normalize_str


def _end_of_answer(tokenizer: Any, tail: str, control: Mapping[str, int]) -> tuple[int, str]:
    """The control token that the template writes after an answer, and its text up to there.

    It need not be the eos token. A template that writes none leaves the eos token to be added.
    """
    met = [(tail.index(text), -len(text), text) for text in control if text in tail]
    if met:
        start, _, text = min(met)
        return control[text], tail[: start + len(text)]
    if tokenizer.eos_token_id is None:
        raise ModelError("the tokenizer has no end-of-turn and no eos token: answers would not end")
    return int(tokenizer.eos_token_id), ""
