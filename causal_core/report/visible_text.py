"""Hostile text made visible: what a reader sees is what the text holds.

Escaping for HTML stops markup; it does not stop characters that have no shape of their own, turn
the reading direction, or drive a terminal. Injections hide in exactly those.
"""

from __future__ import annotations

# Printable by Unicode's rules yet blank on screen: fillers, the empty Braille cell, combining
# grapheme joiner, and the variation selectors that carry hidden bytes. The two selectors that
# emoji use (FE0E, FE0F) stay.
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0").union(
    map(chr, range(0xFE00, 0xFE0E)), map(chr, range(0xE0100, 0xE01F0))
)
# Not printable by Python's rules, harmless to show: line ends, tabs and the wide spaces.
_KEPT = frozenset("\n\t\u00a0\u2009\u202f\u3000")


def visible(text: str) -> str:
    """Replaces control, format, surrogate and blank characters by escapes such as `\\x1b`.

    The result can always be encoded as UTF-8 and holds no bidirectional override.
    """
    return "".join(map(_shown, text))


def _shown(character: str) -> str:
    if character in _KEPT or (character.isprintable() and character not in _BLANK):
        return character
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
