"""How near an answer is to the expected one."""

from __future__ import annotations

from collections import Counter

from causal_core.data.folding import folded
from causal_core.data.schema import contains_witness


def contains(answer: str, expected: str) -> bool:
    """Whether the expected answer stands in the answer, as a witness is found."""
    return contains_witness(answer, expected)


def word_f1(answer: str, expected: str) -> float:
    """F1 of the words of two texts, each as often as it occurs (Rajpurkar et al., 2016: SQuAD).

    Words are what stands between spaces, folded as witnesses are, without punctuation around them.
    Two texts without words are the same text.
    """
    found, wanted = _words(answer), _words(expected)
    if not found or not wanted:
        return float(found == wanted)
    common = sum((Counter(found) & Counter(wanted)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(found), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def _words(text: str) -> list[str]:
    words = (word.strip(".,;:!?\"'()[]{}<>*_`") for word in folded(text).split())
    return [word for word in words if word]
