"""How well a reader that understands nothing tells attacked inputs from clean ones.

A model trained on inputs that their length or a few words give away may learn those, and nothing
about instructions. 0.5 is chance, 1.0 is certain.

Shape legend: D documents, n distinct words of one of them.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import numpy as np

_BUCKETS = 2**16  # of words, by a hash: few of a set's words share one
_FOLDS = 5
_WORD = re.compile(r"\w+")


def auroc(scores_D: np.ndarray, attacked_D: np.ndarray) -> float:
    """How often an attacked document scores higher than a clean one; ties count half."""
    positive, negative = int(attacked_D.sum()), int((~attacked_D).sum())
    _, place, count = np.unique(scores_D, return_inverse=True, return_counts=True)
    rank = np.cumsum(count) - (count - 1) / 2  # the mean rank of equal scores
    total = float(rank[place][attacked_D].sum())
    return (total - positive * (positive + 1) / 2) / (positive * negative)


def by_length(texts: Sequence[str], attacked_D: np.ndarray) -> float:
    """The area by the number of characters alone, whichever way it points."""
    area = auroc(np.array([len(text) for text in texts]), attacked_D)
    return max(area, 1 - area)


def by_words(texts: Sequence[str], attacked_D: np.ndarray, groups_D: np.ndarray) -> float:
    """The area of a naive Bayes classifier on the words of documents that it was not fitted to.

    Args:
        groups_D: Documents of one group (of one row, here) are never on both sides.
    """
    words = [_words(text) for text in texts]
    folds_D = groups_D % _FOLDS
    scores_D = np.zeros(len(texts))
    areas: list[tuple[float, int]] = []
    for fold in range(_FOLDS):
        held_D = folds_D == fold
        evidence = _evidence(words, attacked_D, ~held_D)
        for place in np.flatnonzero(held_D):
            scores_D[place] = evidence[words[place]].sum()
        if len(set(attacked_D[held_D])) == 2:
            areas.append((auroc(scores_D[held_D], attacked_D[held_D]), int(held_D.sum())))
    total = sum(weight for _, weight in areas)
    return sum(area * weight for area, weight in areas) / total


def _evidence(
    words: Sequence[np.ndarray], attacked_D: np.ndarray, used_D: np.ndarray
) -> np.ndarray:
    """log p(word | attacked) - log p(word | clean) of each bucket, with one document of each kind
    added to the counts."""
    shares = []
    for kind in (attacked_D, ~attacked_D):
        chosen = [words[int(place)] for place in np.flatnonzero(kind & used_D)]
        counts = np.bincount(np.concatenate([np.zeros(0, np.int64), *chosen]), minlength=_BUCKETS)
        shares.append((counts + 1) / (len(chosen) + 2))
    return np.log(shares[0]) - np.log(shares[1])


def _words(text: str) -> np.ndarray:
    """The buckets of a text's distinct words [n]."""
    found = {zlib.crc32(word.encode(errors="replace")) % _BUCKETS
             for word in _WORD.findall(text.casefold())}  # fmt: skip
    return np.array(sorted(found), dtype=np.int64)
