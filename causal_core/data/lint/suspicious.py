"""Texts that no data set should hold: what looks like somebody's secret or address, and characters
that a reader does not see."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

_PATTERNS = {
    "a private key": re.compile(r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----"),
    "an access key": re.compile(
        r"\b(?:AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36}|sk-[A-Za-z0-9_-]{20,200}"
        r"|xox[abprs]-[A-Za-z0-9-]{10,100}|hf_[A-Za-z0-9]{30,40}|AIza[0-9A-Za-z_-]{35})"
    ),
    "a signed token": re.compile(
        r"\beyJ[A-Za-z0-9_-]{10,2000}\.eyJ[A-Za-z0-9_-]{10,4000}\.[A-Za-z0-9_-]{10,1000}"
    ),
}
_MAIL = re.compile(r"\b[\w.+-]{1,64}@((?:[A-Za-z0-9-]{1,63}\.){1,5}[A-Za-z]{2,24})\b")
# Set aside for examples (RFC 2606): such an address is nobody's.
_NOBODYS = re.compile(r"(?:^|\.)(?:example\.(?:com|net|org)|example|test|invalid|localhost)$", re.I)
_IPV4 = re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.])")
_CARD = re.compile(r"(?<![\d-])\d(?:[ -]?\d){12,18}(?![\d-])")

_CHARACTERS = {
    "control characters": re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"),
    "characters that turn the reading direction": re.compile(r"[\u202a-\u202e\u2066-\u2069]"),
    "characters that nobody sees": re.compile(
        r"[\u00ad\u034f\u115f\u1160\u180e\u200b\u200e\u200f\u2060-\u2064\u3164\ufeff\uffa0"
        r"\U000e0000-\U000e007f\U000e0100-\U000e01ef]"
    ),
}


def secrets(text: str) -> Iterator[tuple[str, str]]:
    """What in a text looks like a secret or an address of somebody, and of what kind."""
    for kind, pattern in _PATTERNS.items():
        yield from ((kind, found[0]) for found in pattern.finditer(text))
    for mail in _MAIL.finditer(text) if "@" in text else ():
        if not _NOBODYS.search(mail[1]):
            yield "a mail address", mail[0]
    for found in _IPV4.finditer(text):
        if _is_public(found[0]):
            yield "an address of a machine", found[0]
    for card in _CARD.finditer(text):
        if _is_card([int(digit) for digit in card[0] if digit.isdecimal()]):
            yield "a card number", card[0]


def unseen(text: str) -> Iterator[tuple[str, str]]:
    """Kinds of characters in a text that are not what they show, each once."""
    for kind, pattern in _CHARACTERS.items() if not (text.isascii() and text.isprintable()) else ():
        if found := pattern.search(text):
            yield kind, text[max(0, found.start() - 20) : found.end() + 20]


def _is_public(address: str) -> bool:
    try:
        return ipaddress.IPv4Address(address).is_global
    except ValueError:
        return False


def _is_card(digits: list[int]) -> bool:
    """By the check digit (Luhn), and not one digit over and over."""
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return len(set(digits)) > 3 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0
