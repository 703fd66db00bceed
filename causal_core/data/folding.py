"""When two texts say the same to a reader: one way to compare them, for witnesses and for leaks."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterator
from functools import cache

# Part of what is remembered about folded texts: another way of folding is another number.
FOLDING = 3

_QUOTES = {
    "'": "‘’‚‛′‹›ʼʹ´`",
    '"': "“”„‟″«»〝〞",
    "-": "‐‑‒–—―−",
    "/": "⁄∕",
    "i": "ı",  # whose capital is that of i
}
# Marks that are drawn as nothing, besides the format characters (category Cf).
_UNSEEN = ("\u034f", "\u115f", "\u1160", "\u3164", "\uffa0", *map(chr, range(0xFE00, 0xFE10)))
# Lines under, over and through letters; the stretched line of Arabic. Category Me encloses.
_DRAWN_OVER = (*map(chr, (0x305, 0x332, 0x333, 0x335, 0x336, 0x337, 0x33F)), "\u0640")
# Vowels that Arabic and Hebrew may be written with or without, and marks of recitation.
_OPTIONAL = ((0x591, 0x5BD), (0x5BF, 0x5BF), (0x5C1, 0x5C2), (0x5C4, 0x5C5), (0x5C7, 0x5C7),
             (0x610, 0x61A), (0x64B, 0x652), (0x656, 0x65F), (0x670, 0x670), (0x6D6, 0x6DC),
             (0x6DF, 0x6E4), (0x6E7, 0x6E8), (0x6EA, 0x6ED), (0x8D3, 0x8FF))  # fmt: skip
# White letters on a square or a disc, which NFKC leaves, unlike those in a frame.
_WHITE = re.compile(r"(?:CROSSED )?NEGATIVE (?:SQUARED|CIRCLED) LATIN CAPITAL LETTER ([A-Z])")

# Scripts that put no space between words, or that join particles to a word (Hangul), as
# `unicodedata.name` begins.
_RUN_TOGETHER = {
    "CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "BOPOMOFO", "HANGUL", "IDEOGRAPHIC", "YI",
    "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "TAI", "NEW", "JAVANESE", "BALINESE",
}  # fmt: skip


# 1,234,567; a comma after a zero is one of decimals.
_THOUSANDS = re.compile(r"(?<![0-9.,])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?!,?[0-9])")


def folded(text: str) -> str:
    """A text without differences of case, width, composition, quotes, dashes, digits, spacing,
    optional vowels, decoration and the unseen."""
    if not text.isascii():
        plain = unicodedata.normalize("NFC", text).translate(_foldings())
        # Of `İ` folding case makes an i with a dot above. Either step can undo the composition, and
        # what NFKC writes (`″`, `⁄`, marks of Arabic) may be folded in turn.
        plain = unicodedata.normalize("NFKC", plain).casefold().replace("i\u0307", "i")
        text = unicodedata.normalize("NFKC", plain.translate(_foldings()))
    text = " ".join(text.replace("`", "'").casefold().split())
    return _THOUSANDS.sub(lambda number: number[0].replace(",", ""), text)


def holds_word(text: str, word: str) -> bool:
    """Whether a folded text holds a folded `word` that is not part of a longer one.

    Linear in both. Characters are part of one word only where they belong to one script that
    separates words by spaces; digits go with any of these. `.5` belongs to the number before it.
    """
    if not word or word not in text:
        return False
    return any(
        not _joined(text, start, word) and not _joined_after(text, start + len(word), word)
        for start in _occurrences(text, word)
    )


def _occurrences(text: str, word: str) -> Iterator[int]:
    """Where `word` begins in `text`, overlaps too, in linear time (Knuth, Morris, Pratt)."""
    borders = [0] * len(word)
    matched = 0
    for i in range(1, len(word)):
        while matched and word[i] != word[matched]:
            matched = borders[matched - 1]
        matched += word[i] == word[matched]
        borders[i] = matched
    matched = 0
    for i in range(text.index(word), len(text)):
        while matched and text[i] != word[matched]:
            matched = borders[matched - 1]
        matched += text[i] == word[matched]
        if matched == len(word):
            yield i + 1 - len(word)
            matched = borders[matched - 1]


def _joined(text: str, start: int, word: str) -> bool:
    """Whether what stands before `start` belongs to the same word or number."""
    if start == 0:
        return False
    before = text[start - 1]
    if before in ".," and word[0].isdecimal() and text[start - 2 : start - 1].isdecimal():
        return before == "." or _digits(word) == 3
    return _same_word(before, word[0])


def _joined_after(text: str, end: int, word: str) -> bool:
    if end == len(text):
        return False
    after = text[end]
    if after in ".," and word[-1].isdecimal() and text[end + 1 : end + 2].isdecimal():
        return after == "." or (_digits(text[end + 1 : end + 5]) == 3 and _digits(word[::-1]) <= 3)
    return _same_word(word[-1], after)


def _digits(text: str) -> int:
    """How many digits a text begins with."""
    return next((i for i, c in enumerate(text) if not c.isdecimal()), len(text))


def _same_word(one: str, two: str) -> bool:
    scripts = {_script(one), _script(two)}
    return None not in scripts and (len(scripts) == 1 or bool(scripts & {"DIGIT", "COMBINING"}))


@cache
def _script(character: str) -> str | None:
    """The script of a letter or digit that stands in words between spaces, else None."""
    if character.isdecimal():
        return "DIGIT"
    if not (character.isalnum() or unicodedata.category(character).startswith("M")):
        return None
    script = unicodedata.name(character, "").partition(" ")[0]
    return None if script in _RUN_TOGETHER else script


@cache
def _foldings() -> dict[int, str]:
    table = {ord(variant): plain for plain, variants in _QUOTES.items() for variant in variants}
    for character in map(chr, range(sys.maxunicode + 1)):
        category = unicodedata.category(character)
        if category in ("Cf", "Me"):
            table[ord(character)] = ""
        elif category == "Nd":
            table[ord(character)] = str(unicodedata.decimal(character))
        elif category in ("No", "So") and _stands_apart(character):
            table[ord(character)] = f" {character} "
        elif white := category == "So" and _WHITE.fullmatch(unicodedata.name(character, "")):
            table[ord(character)] = white[1]
    optional = (number for first, last in _OPTIONAL for number in range(first, last + 1))
    return table | dict.fromkeys([*map(ord, _UNSEEN + _DRAWN_OVER), *optional], "")


def _stands_apart(symbol: str) -> bool:
    """Whether a symbol is no part of the word or number beside it, though NFKC writes it in letters
    or digits: a footnote's number, `½`, `①`, `™`; not `₂` of a formula or letters in circles."""
    kind = unicodedata.decomposition(symbol).partition(" ")[0]
    written = unicodedata.normalize("NFKC", symbol)
    if unicodedata.category(symbol) == "No":
        return kind in ("<super>", "<fraction>", "<circle>")
    return len(written) > 1 and written.isalnum()
