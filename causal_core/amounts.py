"""Amounts of memory as people write them."""

from __future__ import annotations

import re

_BYTES = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
          "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}  # fmt: skip
_AMOUNT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*")


def parse_bytes(text: str) -> int:
    """Bytes of `24GiB`, `24 GB`, `500MiB`; a bare number is bytes (`ValueError` otherwise)."""
    match = _AMOUNT.fullmatch(text)
    factor = _BYTES.get(match.group(2).lower()) if match else None
    if match is None or factor is None or float(match.group(1)) <= 0:
        raise ValueError("not an amount of memory: write for example 24GiB, 24GB or 500MiB")
    return int(float(match.group(1)) * factor)
