"""A detector of attacked prompts, read off the forward that answers them, and what it is worth.

A read-out is one direction: a prompt whose vector lies far along it is suspected. It is fitted on
validation rows, its threshold on scores of rows that it was not fitted on (folds over rows), so
that no more clean prompts lie above it than was asked for. What it is worth shows beside two
detectors that see no model: the prompt's length, and its words.

Shape legend: n prompts, F features.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

FOLDS = 8
_RIDGES = tuple(10.0**power for power in range(-2, 5))  # in units of the mean squared feature
_NEAR = 0.1  # lengths that differ by less of the longer one are alike
_RESAMPLES = 500
_MOST_WORDS = 4096


@dataclass(frozen=True)
class Prompts:
    """Clean and attacked prompts as a detector sees them."""

    features: np.ndarray  # [n, F]
    attacked: np.ndarray  # [n] bool
    row: np.ndarray  # [n]: prompts of one row are not independent
    tokens: np.ndarray  # [n]


@dataclass(frozen=True)
class ReadOut:
    """weight . features + bias, suspected from the threshold on."""

    weight: np.ndarray  # [F]
    bias: float
    threshold: float

    def scores(self, features: np.ndarray) -> np.ndarray:
        """[n, F] -> [n]: higher is more suspicious."""
        return features @ self.weight + self.bias


@dataclass(frozen=True)
class Fitted:
    """A read-out, and how well it told apart the rows that it was not fitted on."""

    read_out: ReadOut
    auroc: float


def fit_read_out(prompts: Prompts, false_positives: float) -> Fitted:
    """The ridge read-out of clean against attacked, its strength chosen over folds of rows.

    Args:
        false_positives: Share of clean prompts that may lie above the threshold.
    """
    best: tuple[float, float, np.ndarray] | None = None
    for ridge in _RIDGES:
        scores = _out_of_fold(prompts, ridge)
        value = auroc(scores[~prompts.attacked], scores[prompts.attacked])
        if best is None or value > best[0]:
            best = value, ridge, scores
    assert best is not None
    value, ridge, scores = best
    weight, bias = _ridge(prompts.features, prompts.attacked, ridge)
    threshold = threshold_at(scores[~prompts.attacked], false_positives)
    return Fitted(ReadOut(weight, bias, threshold), value)


def threshold_at(clean: np.ndarray, false_positives: float) -> float:
    """The lowest score that no more than this share of clean prompts reaches."""
    allowed = math.floor(false_positives * len(clean))
    return float(np.nextafter(np.sort(clean)[::-1][allowed], np.inf))


def auroc(clean: np.ndarray, attacked: np.ndarray) -> float:
    """Probability that an attacked prompt is more suspicious than a clean one, ties by half."""
    order = np.sort(clean)
    below = np.searchsorted(order, attacked, side="left")
    ties = np.searchsorted(order, attacked, side="right") - below
    return float((below + 0.5 * ties).mean() / len(clean))


def auroc_at_equal_length(scores: np.ndarray, prompts: Prompts) -> float | None:
    """`auroc` over pairs of about the same length alone; None where there are none."""
    hit, clean = prompts.attacked, ~prompts.attacked
    one, other = prompts.tokens[hit][:, None], prompts.tokens[clean][None, :]
    alike = np.abs(one - other) < _NEAR * np.maximum(one, other)
    if not alike.any():
        return None
    difference = scores[hit][:, None] - scores[clean][None, :]
    return float(((difference > 0) + 0.5 * (difference == 0))[alike].mean())


@dataclass(frozen=True)
class Worth:
    """What a detector finds on a test set; intervals are 95 % over rows."""

    auroc: tuple[float, float, float]  # value, low, high
    auroc_at_equal_length: float | None
    found_at_one_percent: float  # attacked prompts, with 1 % of this set's clean ones suspected
    found: float  # attacked prompts above the threshold
    false_positives: float  # clean prompts above it


def worth(scores: np.ndarray, prompts: Prompts, threshold: float, seed: int = 0) -> Worth:
    """Judges scores on prompts that nothing was fitted on."""
    hit = prompts.attacked
    strict = threshold_at(scores[~hit], 0.01)
    value, low, high = _interval(
        lambda rows: auroc(scores[rows & ~hit], scores[rows & hit]), prompts, seed
    )
    return Worth(
        (value, max(0.0, low), min(1.0, high)),
        auroc_at_equal_length(scores, prompts),
        float((scores[hit] >= strict).mean()),
        float((scores[hit] >= threshold).mean()),
        float((scores[~hit] >= threshold).mean()),
    )


def advantage(
    ours: np.ndarray, theirs: np.ndarray, prompts: Prompts, seed: int = 0
) -> tuple[float, float, float]:
    """How much larger the AUROC of `ours` is on the same prompts: value, low, high (95 %)."""
    hit = prompts.attacked

    def difference(rows: np.ndarray) -> float:
        clean, attacked = rows & ~hit, rows & hit
        return auroc(ours[clean], ours[attacked]) - auroc(theirs[clean], theirs[attacked])

    return _interval(difference, prompts, seed)


def _interval(
    measure: Callable[[np.ndarray], float], prompts: Prompts, seed: int
) -> tuple[float, float, float]:
    """A figure with its interval by leaving random halves of the rows out (half-sampling).

    The spread over halves is the standard error of the whole (McCarthy, 1969: Pseudo-replication).
    """
    whole = measure(np.ones(len(prompts.row), dtype=bool))
    rows = np.unique(prompts.row)
    random = np.random.default_rng(seed)
    halves = []
    for _ in range(_RESAMPLES):
        chosen = random.permutation(rows)[: len(rows) // 2]
        kept = np.isin(prompts.row, chosen)
        if (kept & prompts.attacked).any() and (kept & ~prompts.attacked).any():
            halves.append(measure(kept))
    spread = 1.96 * float(np.std(halves)) if halves else math.nan
    return whole, whole - spread, whole + spread


def _out_of_fold(prompts: Prompts, ridge: float) -> np.ndarray:
    scores = np.zeros(len(prompts.row))
    rows = np.unique(prompts.row)
    for fold in range(min(FOLDS, len(rows))):
        held = np.isin(prompts.row, rows[fold::FOLDS])
        weight, bias = _ridge(prompts.features[~held], prompts.attacked[~held], ridge)
        scores[held] = prompts.features[held] @ weight + bias
    return scores


def _ridge(features: np.ndarray, attacked: np.ndarray, ridge: float) -> tuple[np.ndarray, float]:
    """Weights [F] and bias of ridge regression on -1 and 1, both kinds counting alike.

    In the dual, n by n: features are more than prompts.
    """
    x = features.astype(np.float64)
    share = np.where(attacked, 0.5 / max(1, attacked.sum()), 0.5 / max(1, (~attacked).sum()))
    centre = share @ x
    scale = np.sqrt(share @ (x - centre) ** 2)
    scale[scale < 1e-12 * max(1.0, float(scale.max(initial=0.0)))] = np.inf  # says nothing
    standard = (x - centre) / scale
    root = np.sqrt(share * len(x))
    weighted, target = standard * root[:, None], np.where(attacked, 1.0, -1.0) * root
    kernel = weighted @ weighted.T
    strength = ridge * max(float(np.trace(kernel)) / len(x), 1e-12)
    dual = np.linalg.solve(kernel + strength * np.eye(len(x)), target)
    weight = (weighted.T @ dual) / scale
    return weight, float(-centre @ weight)


def lengths(tokens: np.ndarray) -> np.ndarray:
    """What the length-only detector sees, [n, 2]."""
    return np.stack([tokens, np.log(np.maximum(tokens, 1))], axis=1).astype(np.float64)


def vocabulary(texts: Sequence[str]) -> dict[str, int]:
    """The words of the texts that a detector is fitted on, those in most texts first."""
    counts: dict[str, int] = {}
    for text in texts:
        for word in set(_words(text)):
            counts[word] = counts.get(word, 0) + 1
    ranked = sorted(counts, key=lambda word: (-counts[word], word))[:_MOST_WORDS]
    return {word: place for place, word in enumerate(ranked)}


def bags_of_words(texts: Sequence[str], words: dict[str, int]) -> np.ndarray:
    """What the bag-of-words detector sees, [n, words]: log(1 + count)."""
    counts = np.zeros((len(texts), max(1, len(words))))
    for place, text in enumerate(texts):
        for word in _words(text):
            if (column := words.get(word)) is not None:
                counts[place, column] += 1
    return np.log1p(counts)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
