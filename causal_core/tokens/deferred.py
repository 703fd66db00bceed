"""An encoder that is not made before a text needs it.

Where data are tokenised already, all that is asked of their tokenizer is which one it is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from causal_core.tokens.prompts import PromptEncoder


class DeferredEncoder:
    """Implements `causal_core.tokens.prompts.EncoderSource`.

    Args:
        make: Makes the encoder.
        facts: What `facts_of` says of it, looked up.
    """

    def __init__(self, make: Callable[[], PromptEncoder], facts: dict[str, Any]) -> None:
        self._make = make
        self._fingerprint = str(facts["fingerprint"])
        self._largest_token = int(facts["largest_token"])

    def fingerprint(self) -> str:
        """As of the encoder."""
        return self._fingerprint

    def largest_token(self) -> int:
        """As of the encoder."""
        return self._largest_token

    def made(self) -> PromptEncoder:
        """The encoder itself."""
        return self._encoder

    @cached_property
    def _encoder(self) -> PromptEncoder:
        return self._make()


def facts_of(encoder: PromptEncoder) -> dict[str, Any]:
    """What is asked of an encoder whose data are tokenised already: plain values."""
    return {"fingerprint": encoder.fingerprint(), "largest_token": encoder.largest_token()}
