"""Hostile text made visible: what a reader sees is what the text holds.

Escaping for HTML stops markup; it does not stop characters that have no shape of their own, turn
the reading direction, or drive a terminal. Injections hide in exactly those.
"""

from __future__ import annotations

from causal_core.credentials import without_credentials

# Printable by Unicode's rules yet blank on screen: fillers, the empty Braille cell, combining
# grapheme joiner, and the variation selectors that carry hidden bytes. The two selectors that
# emoji use (FE0E, FE0F) stay.
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0").union(
    map(chr, range(0xFE00, 0xFE0E)), map(chr, range(0xE0100, 0xE01F0))
)
# Not printable by Python's rules, harmless to show: line ends, tabs and the wide spaces.
_KEPT = frozenset("\n\t\u00a0\u2009\u202f\u3000")
# A location is seldom longer; beyond it nothing of a value is looked at or printed.
_LOOKED_AT = 4096


def visible(text: str) -> str:
    """Replaces control, format, surrogate and blank characters by escapes such as `\\x1b`.

    The result can always be encoded as UTF-8 and holds no bidirectional override.
    """
    if text.isascii() and text.isprintable():
        return text  # nearly always
    return "".join(map(_shown, text))


def quoted(value: object, limit: int = 80) -> str:
    """Untrusted text for a message: quoted, every unprintable character escaped, cut to `limit`.

    Nothing that comes back can move a cursor, change a colour or start a new line, and no
    password in a location comes back at all.
    """
    # Cut first: a hostile value may be gigabytes long and repr() would copy it whole. Passwords
    # go before the text is cut to what is shown: half of one would not be recognised.
    if isinstance(value, str):
        text = repr(without_credentials(value[:_LOOKED_AT])[: limit + 1])
    else:
        text = without_credentials(_short_repr(value)[:_LOOKED_AT])
    text = visible(text)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def shown(text: str) -> str:
    """A file or field name as it is if every character is printable, else `quoted`."""
    return text if text.isprintable() and visible(text) == text else quoted(text, limit=200)


def _short_repr(value: object) -> str:
    try:
        return repr(value)
    except ValueError:  # an integer of more digits than Python converts
        return f"a number of {value.bit_length():,} bits" if isinstance(value, int) else "a value"
    except RecursionError:
        return f"a deeply nested {type(value).__name__}"


def _shown(character: str) -> str:
    if character in _KEPT or (character.isprintable() and character not in _BLANK):
        return character
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
