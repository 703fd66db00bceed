"""Breaks the markers of roles and turns in hostile text, so that it cannot pose as the template.

Markers are compared as the tokenizer sees them, after its own normalisation: one in full-width
characters is a marker to a tokenizer that folds width.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

Normalize = Callable[[str], str]

# What a template writes as a role marker in ordinary characters ([INST], <<SYS>>, ### User:).
_BRACKETED = re.compile(r"<{1,2}/?[\w|]+>{1,2}|\[/?[A-Z_]+\]|#{2,} ?\w+:?")
_IN_WORD = re.compile(r"\w")


@dataclass(frozen=True)
class SeenMarker:
    """A marker as it is looked for in a text that the tokenizer has normalised."""

    text: str  # a space stands for U+2581, too: SentencePiece takes one for the other
    # The character next to it, where it is none without; at the ends of a text the template's own
    # line breaks are.
    before: str = ""
    after: str = ""

    def pattern(self) -> str:
        """The marker as a regular expression."""
        literal = re.sub(r"\\ ", "[ ▁]", re.escape(self.text))
        before = f"(?<![^{self.before}])" if self.before else ""
        return before + literal + (f"(?![^{self.after}])" if self.after else "")


class Neutraliser:
    """Finds any of a set of markers in a text and breaks it with a space after its first
    character."""

    def __init__(
        self,
        markers: Iterable[str],
        normalize: Normalize | None,
        known: Callable[[str], bool] = lambda character: True,
    ) -> None:
        """`known` says whether the tokenizer has a token for a character."""
        self.markers = tuple(sorted(set(markers), key=lambda m: (-len(m), m)))
        self._normalize = normalize
        self._known = known

    def __contains__(self, text: str) -> bool:
        """Whether the text holds a marker."""
        return next(self._found(self.seen(text)), None) is not None

    def broken(self, text: str) -> str:
        """The text with every marker broken; what holds none is returned as it is."""
        # Breaking one marker can lay bare another that it hid: each round breaks at least one.
        for _ in range(len(self.markers) + 1):
            cuts = self._cuts(text) if text in self else set()
            if not cuts:
                break
            text = "".join(f" {c}" if i in cuts else c for i, c in enumerate(text))
        return text

    def _cuts(self, text: str) -> set[int]:
        """The characters before which a space breaks a marker."""
        pieces = [self.seen(c) for c in text]
        origin = [index for index, piece in enumerate(pieces) for _ in piece]
        return {origin[start + 1] for start in self._found("".join(pieces))}

    def _found(self, seen: str) -> Iterator[int]:
        """Where markers begin in a text as the tokenizer sees it.

        `Human:` inside a word is none; but a character that the tokenizer does not know is no part
        of a word to the model.
        """
        start = 0
        while self._pattern is not None and (match := self._pattern.search(seen, start)):
            at = match.start()
            start = match.end()
            before = seen[at - 1 : at]
            if seen[at].isalnum() and _IN_WORD.match(before) and self._known(before):
                start = at + 1  # another may begin within
            else:
                yield at

    def seen(self, text: str) -> str:
        """A text as the tokenizer normalises it in the middle of a longer one."""
        if self._normalize is None:
            return text
        return self._normalize(f"x{text}").removeprefix(self._normalize("x"))

    @cached_property
    def seen_markers(self) -> tuple[SeenMarker, ...]:
        """What is looked for: at one place the first that is there counts."""
        seen = dict.fromkeys(self.seen(marker) for marker in self.markers)
        return tuple(
            _bounded(marker) for marker in seen if len(marker) > 1 and not marker.isspace()
        )

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        patterns = [marker.pattern() for marker in self.seen_markers]
        return re.compile("|".join(patterns)) if patterns else None


def _bounded(marker: str) -> SeenMarker:
    first, last = marker[0], marker[-1]
    if first.isspace() and last.isspace():  # a word as a line of its own
        return SeenMarker(_spaced(marker.strip()), first, last)
    return SeenMarker(_spaced(marker))


def _spaced(text: str) -> str:
    return text.replace("▁", " ")


def plain_markers(turns: Iterable[str], opening: str, control: Iterable[str]) -> set[str]:
    """The role markers that a template writes in ordinary characters, from its own literals.

    Args:
        turns: Literals between the turns of a conversation: role markers and nothing else.
        opening: The literal before the first turn; it may hold whole sentences besides.
        control: Texts of the control tokens. A plain word behind one (`<|start|>user`) is guarded
            by it and stays an ordinary word.
    """
    found = {m for literal in (*turns, opening) for m in _BRACKETED.findall(literal)}
    controls = sorted((c for c in control if c), key=len, reverse=True)
    splitter = re.compile("|".join(map(re.escape, controls))) if controls else None
    found = {m for m in found if splitter is None or not splitter.fullmatch(m)}
    for literal in (*turns, opening):
        pieces = splitter.split(literal) if splitter is not None else [literal]
        for number, piece in enumerate(pieces):
            for marker in map(str.strip, _BRACKETED.sub("\n", piece).splitlines()):
                if literal is opening and len(marker.split()) != 1:
                    continue
                if any(not (c.isalnum() or c.isspace()) for c in marker):
                    found.add(marker)
                elif marker and number == 0:
                    found.add(f"\n{marker}\n")  # a bare word is one as a line of its own
    return {m for m in found if len(m.strip()) > 1 and any(c.isalnum() for c in m)}
