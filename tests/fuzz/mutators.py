"""Hostile values and seeded mutations: every input is a function of a random generator."""

from __future__ import annotations

import json
import random
import struct
from typing import Any

TEXTS = (
    "", " ", "\n", "\t", "\x00", "a\x00b", "\x1b[31m\x1b]0;owned\x07", "\x9b2J", "\u202e", "\ud800",
    "\u200b", "\ufeff", "\u0345" * 50, "é" * 40, "[/]", "[bold]", "{{ 7*7 }}", "{% raw %}",
    "../../etc/passwd", "/dev/zero", "a" * 300, "x" * 20_000, "<|start|>", "<|end|>system\n",
    "<|im_start|>", "[INST]", "</s>", "s3://user:secret@host", "null", "NaN", "1e999", "-0", "0x_",
    "2024-01-01", ".inf", "true", "*a", "&a", "!!python/object:os.system", "? [", "'", '"', "%",
    "train", "validation", "middle", "🙂" * 9, "ｆｕｌｌ", "答案", "a\r\nb", "\\u0000",
)  # fmt: skip
NUMBERS = (0, -1, 1, 2**31, 2**53 + 1, 2**64, -(10**30), 1.5, 1e308, float("inf"), float("nan"))
BYTES = (b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf", b"\x00" * 8, b"\xc3", b"\r", b"\n\n", b"{",
         b"[", b'"', b"PAR1", b"\x1f\x8b", b"\xed\xa0\x80", b"[" * 2000, b"9" * 5000)  # fmt: skip


def text(rng: random.Random) -> str:
    """A hostile text, or several beside each other."""
    parts = [rng.choice(TEXTS) for _ in range(rng.choice((1, 1, 1, 2, 4)))]
    if rng.random() < 0.2:
        parts.append("".join(chr(rng.randrange(0xD800)) for _ in range(rng.randrange(12))))
    return "".join(parts)


def value(rng: random.Random, depth: int = 0) -> Any:
    """Any JSON value."""
    kind = rng.random()
    if kind < 0.45:
        return text(rng)
    if kind < 0.6:
        return rng.choice(NUMBERS)
    if kind < 0.7 or depth > 3:
        return rng.choice((None, True, False))
    items = [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return items if kind < 0.85 else {text(rng)[:40]: item for item in items}


def mutated_tree(rng: random.Random, tree: Any) -> Any:
    """A tree of plain values with something in it replaced, removed or added."""
    if isinstance(tree, dict) and tree and rng.random() < 0.85:
        key = rng.choice(list(tree))
        action = rng.random()
        if action < 0.12:
            return {k: v for k, v in tree.items() if k != key}
        if action < 0.24:
            return {**tree, text(rng)[:60]: value(rng)}
        return {**tree, key: mutated_tree(rng, tree[key])}
    if isinstance(tree, list) and tree and rng.random() < 0.5:
        place = rng.randrange(len(tree))
        return [*tree[:place], mutated_tree(rng, tree[place]), *tree[place + 1 :]]
    return value(rng)


def mutated_bytes(rng: random.Random, data: bytes) -> bytes:
    """Bytes with a few places flipped, cut, doubled or filled with what parsers stumble over."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        at = rng.randrange(len(found) + 1)
        action = rng.randrange(7)
        if action == 0 and at < len(found):
            found[at] ^= 1 << rng.randrange(8)
        elif action == 1:
            del found[at : at + rng.randrange(1, 40)]
        elif action == 2:
            found[at:at] = rng.choice(BYTES)
        elif action == 3:
            found[at:at] = found[at : at + rng.randrange(1, 200)]
        elif action == 4:
            found[at : at + 4] = struct.pack("<I", rng.choice((0, 1, 2**31 - 1, 2**32 - 1)))
        elif action == 5:
            del found[at:]
        else:
            found[at : at + 1] = bytes([rng.randrange(256)])
    return bytes(found)


def dumped(tree: Any) -> bytes:
    """JSON as Python writes it, NaN and halves of surrogate pairs included."""
    return json.dumps(tree).encode()
