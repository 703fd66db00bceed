"""Passwords in locations: recognised in any value, and never repeated in a message.

A location is stored with a run, its checkpoints and its logs; a password in it would be, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

# Percent-encoding may be applied any number of times: %3A, %253A, ...
_SLASH, _COLON, _AT = r"(?:/|%(?:25)*2[fF])", r"(?::|%(?:25)*3[aA])", r"(?:@|%(?:25)*40)"
# `//user:secret@`, and `s3:/user:secret@` as pathlib leaves it. The secret ends with the last @, as
# it may itself hold a slash or an @.
# Repetitions are bounded where they could overlap, so that the search stays linear.
_USERINFO = re.compile(
    rf"({_SLASH}{{2,8}}|(?<=\w:){_SLASH})(?:(?!{_SLASH}|{_COLON}).)*{_COLON}", re.S
)
_LAST_AT = re.compile(rf".*{_AT}", re.S)
# In a web location whoever stands before the @ is a token.
_WEB_USER = re.compile(rf"(https?{_COLON}{_SLASH}{{2}})(?:(?!{_SLASH})[^?#\s])*{_AT}", re.I)
_QUERY = re.compile(
    r"([?&;#][^=&;\s]{0,40}(?:secret|passw|passphrase|pwd|token(?!i)|signature|credential|"
    r"a(?:pi|ccess|ccount)[_-]?key|(?<=[?&;#])(?:sig|key|auth|session))[^=&;\s]{0,40}=)[^&;\s]+",
    re.I,
)
# `user:secret@host` without a scheme, as copy programs take it: the value as a whole.
_BARE = re.compile(rf"[\w.+%-]+?{_COLON}(?!{_SLASH}{{2}}).+{_AT}[\w.\[-].*", re.S)
# The same as a part of a word; what a place in a file (`x.jsonl:3:`) begins is none.
_BARE_WORD = re.compile(r"(?<![\w.+%/-])([\w.+%-]{1,80}:)(?![\d/]+:|//)[^@\"']{1,200}@(?=[\w\[])")
_MOST_ENCODED = 8  # times that names and signs are looked for behind percent-encoding
_WORD = re.compile(r"\S+")


def holds_credentials(text: str) -> bool:
    """Whether a location carries a password, a token or a key."""
    return without_credentials(text) != text or _BARE.fullmatch(text.strip()) is not None


def credentials_in(tree: Any, path: str = "") -> Iterator[str]:
    """Dotted paths of the strings below a tree of plain values that carry credentials."""
    if isinstance(tree, str):
        if holds_credentials(tree):
            yield path
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            if isinstance(key, str) and holds_credentials(key):
                yield path or "a key"
            yield from credentials_in(value, f"{path}.{key}" if path else str(key))
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from credentials_in(value, path)


def texts_in(tree: Any) -> Iterator[str]:
    """The strings in a tree of plain values, keys among them."""
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from texts_in(key)
            yield from texts_in(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from texts_in(value)


def without_credentials(text: str) -> str:
    """One value with `***` in place of what authenticates; any other text as it is."""
    plain = text
    for _ in range(_MOST_ENCODED):
        masked = _masked(plain)
        if masked != plain:
            return masked
        plain, encoded = unquote(plain), plain
        if plain == encoded:
            break
    return text


def _masked(text: str) -> str:
    last = _LAST_AT.match(text)
    if last is not None:
        user = _USERINFO.search(text, 0, last.end())
        if user is not None:
            text = f"{text[: user.end(1)]}***@{text[last.end() :]}"
    return _QUERY.sub(r"\1***", _WEB_USER.sub(r"\1***@", text))


def message_without_credentials(text: str) -> str:
    """A message with `***` in place of what authenticates, word by word."""
    return _WORD.sub(
        lambda word: _BARE_WORD.sub(r"\1***@", without_credentials(word.group())), text
    )
