"""Texts that are nearly the same: MinHash over runs of three words (Broder, 1997).

Of two texts, the share of equal places in their signatures estimates the share of runs that they
have in common. Pairs are looked for only among texts whose signatures agree in a whole band, so the
time is linear in the texts.

Shape legend: P places of a signature, n runs of a text.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

NEAR = 0.8  # of the runs in common
_RUN = 3
_BANDS, _ROWS = 16, 4  # texts with 0.8 in common agree in a band with a chance of 0.9998
_PRIME = 2**31 - 1
_random = np.random.default_rng(0)
_FACTORS_P = _random.integers(1, _PRIME, _BANDS * _ROWS, dtype=np.int64)
_OFFSETS_P = _random.integers(0, _PRIME, _BANDS * _ROWS, dtype=np.int64)
_WORD = re.compile(r"\w+")
_MOST_WORDS = 1000
_MOST_OF_A_BAND = 8  # texts with one band that are compared with each new one


def signature(text: str) -> np.ndarray:
    """Of a text's runs of words, digits and case aside [P]."""
    words = _WORD.findall(re.sub(r"\d", "0", text.casefold()))[:_MOST_WORDS]
    runs = {" ".join(words[i : i + _RUN]) for i in range(max(1, len(words) - _RUN + 1))}
    hashes_n = np.array([zlib.crc32(run.encode(errors="replace")) % _PRIME for run in sorted(runs)])
    return ((hashes_n[:, None] * _FACTORS_P + _OFFSETS_P) % _PRIME).min(axis=0)


def near_duplicates(texts: Sequence[str], earlier: int = 0) -> Iterator[tuple[int, int]]:
    """Each text that is nearly the same as one before it, with the first such.

    Args:
        earlier: So many texts at the beginning are compared with, and not looked for.
    """
    signatures = [signature(text) for text in texts]
    buckets: dict[tuple[int, bytes], list[int]] = {}
    for place, found in enumerate(signatures):
        bands = [(band, part.tobytes()) for band, part in enumerate(found.reshape(_BANDS, _ROWS))]
        if place >= earlier:
            candidates = sorted({one for band in bands for one in buckets.get(band, ())})
            near = (one for one in candidates if (signatures[one] == found).mean() >= NEAR)
            if (first := next(near, None)) is not None:
                yield place, first
        if place < earlier or earlier == 0:
            for band in bands:
                members = buckets.setdefault(band, [])
                if len(members) < _MOST_OF_A_BAND:
                    members.append(place)
