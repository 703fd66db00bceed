"""Amounts of memory as people write them."""

from __future__ import annotations

import difflib
import re

from causal_core.errors import ConfigError

_BYTES = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
          "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}  # fmt: skip
_AMOUNT = re.compile(r"\s*(\d{1,18}(?:\.\d{1,18})?)\s*([a-zA-Z]*)\s*")


def parse_bytes(text: str) -> int:
    """Bytes of `24GiB`, `24 GB`, `500MiB`; a bare number is bytes (`ValueError` otherwise)."""
    match = _AMOUNT.fullmatch(text)
    factor = _BYTES.get(match.group(2).lower()) if match else None
    if match is None or factor is None or float(match.group(1)) <= 0:
        raise ValueError("not an amount of memory: write for example 24GiB, 24GB or 500MiB")
    return int(float(match.group(1)) * factor)


# What programs can have of a card (GiB that torch reports), not the number on the box.
CARDS = {
    "RTX2060": 5.8, "RTX3060": 11.8, "RTX3090": 23.7, "RTX4060Ti": 15.7, "RTX4070": 11.7,
    "RTX4080": 15.7, "RTX4090": 23.6, "RTX5090": 31.4, "T4": 14.6, "L4": 22.0, "A10G": 22.1,
    "A10": 22.1, "L40S": 44.4, "A6000": 47.4, "V100": 15.8, "V100-32GB": 31.7, "A100": 39.4,
    "A100-80GB": 79.2, "H100": 79.1, "H200": 139.8,
}  # fmt: skip


def card_bytes(name: str) -> int:
    """Memory of a card that programs can have (`ConfigError` names the nearest known one)."""
    bare = {_bare(card): card for card in CARDS}
    found = bare.get(_bare(name))
    if found is None:
        near = difflib.get_close_matches(_bare(name), bare, n=1, cutoff=0.4)
        hint = f"; did you mean {bare[near[0]]}?" if near else ""
        raise ConfigError(
            f"--gpu {name}: unknown card{hint}. Known: {', '.join(CARDS)}. Or give --gpu-memory"
        )
    return int(CARDS[found] * 2**30)


def _bare(name: str) -> str:
    return re.sub(r"nvidia|geforce|[\s_-]", "", name.lower())


def gib(size: int) -> str:
    """`3.42 GiB`, or MiB below one."""
    return f"{size / 2**30:.2f} GiB" if abs(size) >= 2**30 else f"{size / 2**20:.0f} MiB"
