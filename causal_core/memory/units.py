"""The cards people have, and amounts of memory as people read them."""

from __future__ import annotations

import difflib
import re

from causal_core.errors import ConfigError

# What programs can have of a card (GiB that torch reports), not the number on the box.
CARDS = {
    "RTX2060": 5.8, "RTX3060": 11.8, "RTX3090": 23.7, "RTX4060Ti": 15.7, "RTX4070": 11.7,
    "RTX4080": 15.7, "RTX4090": 23.6, "RTX5090": 31.4, "T4": 14.6, "L4": 22.0, "A10G": 22.1,
    "A10": 22.1, "L40S": 44.4, "A6000": 47.4, "V100": 15.8, "V100-32GB": 31.7, "A100": 39.4,
    "A100-80GB": 79.2, "H100": 79.1, "H200": 139.8,
}  # fmt: skip


def card_bytes(name: str) -> int:
    """Memory of a card that programs can have (`ConfigError` names the nearest known one)."""
    plain = {_plain(card): card for card in CARDS}
    found = plain.get(_plain(name))
    if found is None:
        near = difflib.get_close_matches(_plain(name), plain, n=1, cutoff=0.4)
        hint = f"; did you mean {plain[near[0]]}?" if near else ""
        raise ConfigError(
            f"--gpu {name}: unknown card{hint} Known: {', '.join(CARDS)}. Or give --gpu-memory"
        )
    return int(CARDS[found] * 2**30)


def _plain(name: str) -> str:
    return re.sub(r"nvidia|geforce|[\s_-]", "", name.lower())


def gib(size: int) -> str:
    """`3.42 GiB`, or MiB below one."""
    return f"{size / 2**30:.2f} GiB" if abs(size) >= 2**30 else f"{size / 2**20:.0f} MiB"
