"""The tokenizer as it is, without any template: many texts at once, and where they may be cut."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from causal_core.tokens.ragged import Ragged

# Texts of one call: what the library returns of each is about a hundred bytes a token.
_AT_ONCE = 1024


class Encoding:
    """Ids of texts, exactly those of `tokenizer(text, add_special_tokens=False)`."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._literals: dict[str, list[int]] = {}

    def of_texts(self, texts: Sequence[str]) -> Ragged:
        """Ids of each text, on all cores where the tokenizer can."""
        parts = [
            self._some(texts[start : start + _AT_ONCE]) for start in range(0, len(texts), _AT_ONCE)
        ]
        return parts[0] if len(parts) == 1 else Ragged.joined(parts)

    def of_literal(self, text: str) -> list[int]:
        """Ids of a text that comes again and again."""
        if text not in self._literals:
            self._literals[text] = self.of_texts([text]).lists()[0] if text else []
        return self._literals[text]

    def cut(self, literal: str) -> int | None:
        """The last place in a literal from which on ids do not depend on what stands before it.

        The ids of a text with the literal in it are then those of the text up to there and those of
        the rest, one after the other: the tokenizer parts texts at its control tokens before
        anything else, and treats each part on its own.
        """
        places = [literal.rindex(token) for token in self._parting if token in literal]
        return max(places, default=None)

    def _some(self, texts: Sequence[str]) -> Ragged:
        backend = self._backend
        # Somebody may have asked the tokenizer to cut or to fill up texts: it remembers that.
        if backend is not None and not (
            backend.truncation or backend.padding or backend.encode_special_tokens
        ):
            # `fast` leaves out where in the text each token was, which nobody asks for here.
            found = backend.encode_batch_fast(list(texts), add_special_tokens=False)
            return Ragged.of([encoding.ids for encoding in found])
        encoded = self._tokenizer(
            list(texts),
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # a long text is refused by data.max_length, with its row
        )
        return Ragged.of(encoded["input_ids"])

    @cached_property
    def _backend(self) -> Any:
        """The library's tokenizer, where the one that was loaded adds nothing of its own to it."""
        from transformers import PreTrainedTokenizerFast

        kind = type(self._tokenizer)
        if not isinstance(self._tokenizer, PreTrainedTokenizerFast) or any(
            getattr(kind, name) is not getattr(PreTrainedTokenizerFast, name)
            for name in ("__call__", "_encode_plus")
        ):
            return None
        return self._tokenizer.backend_tokenizer

    @cached_property
    def _parting(self) -> tuple[str, ...]:
        """Control tokens before which a text can be cut (see `cut`).

        A token is found wherever it stands, unless it wants something of its surroundings. No other
        may begin before it and reach into it, and none that goes on after it may want anything.
        """
        if self._backend is None or not _is_known(self._backend.pre_tokenizer):
            return ()
        added = {t.content: t for t in self._tokenizer.added_tokens_decoder.values() if t.content}
        demanding = [text for text, t in added.items() if t.normalized or t.lstrip or t.single_word]
        within = {character for text in added for character in text[1:]}
        return tuple(
            text
            for text in added
            if text[0] not in within and not any(other.startswith(text) for other in demanding)
        )


def _is_known(pre_tokenizer: Any) -> bool:
    """Whether it is one of the library's own: all of them work on each part of a text alone, but
    for what stands at the very beginning, where a cut leaves a control token. One that is written
    in Python is given the whole text."""
    if pre_tokenizer is None:
        return True
    try:
        pre_tokenizer.__getstate__()
    except Exception:  # noqa: BLE001 - the library has no error of its own for "not serialisable"
        return False
    return True
