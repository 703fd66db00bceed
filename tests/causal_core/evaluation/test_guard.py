"""The detector's arithmetic: thresholds keep their promise, nothing is fitted on what is judged.

1. AUROC is the share of pairs in the right order.
2. No more clean prompts than asked for lie above the threshold, whatever the scores.
3. Where features say nothing about attacks, out-of-fold AUROC is that of chance, however many
   features there are; where one says all, it is found.
4. At equal length a detector of lengths tells nothing.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from causal_core.evaluation.guard import (
    Prompts,
    advantage,
    auroc,
    auroc_at_equal_length,
    bags_of_words,
    fit_read_out,
    lengths,
    threshold_at,
    vocabulary,
    worth,
)

SCORES = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=12)


def prompts_of(rows=60, features=200, signal=0.0, seed=0):
    """Rows of one clean and one attacked prompt; `signal` moves one feature of the attacked."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(2 * rows, features))
    attacked = np.tile([False, True], rows)
    x[attacked, 3] += signal
    tokens = random.integers(20, 40, size=2 * rows) + 10 * attacked
    return Prompts(x, attacked, np.repeat(np.arange(rows), 2), tokens)


@given(SCORES, SCORES)
def test_auroc_counts_pairs(clean, attacked):
    pairs = [(a > c) + 0.5 * (a == c) for a in attacked for c in clean]
    assert auroc(np.array(clean), np.array(attacked)) == pytest.approx(sum(pairs) / len(pairs))


@given(SCORES, st.floats(0, 0.5))
def test_a_threshold_keeps_its_promise(clean, share):
    threshold = threshold_at(np.array(clean), share)
    assert np.mean(np.array(clean) >= threshold) <= share


def test_noise_is_chance_and_a_signal_is_found():
    aurocs = [fit_read_out(prompts_of(seed=seed), 0.05).auroc for seed in range(8)]
    # The best of seven strengths on 60 rows: a standard error of AUROC is 0.05 there.
    assert abs(np.mean(aurocs) - 0.5) < 0.1
    found = fit_read_out(prompts_of(signal=6.0, rows=120), 0.05)
    assert found.auroc > 0.9
    other = prompts_of(signal=6.0, rows=120, seed=1)
    scores = found.read_out.scores(other.features)
    figures = worth(scores, other, found.read_out.threshold)
    assert figures.auroc[1] > 0.9 and figures.found > 0.8 and figures.false_positives < 0.15
    noise = np.random.default_rng(5).normal(size=len(scores))
    value, low, high = advantage(scores, noise, other)
    assert low > 0.2 and low < value < high


def test_at_equal_length_lengths_tell_nothing():
    prompts = prompts_of(rows=400)
    fitted = fit_read_out(
        Prompts(lengths(prompts.tokens), prompts.attacked, prompts.row, prompts.tokens), 0.05
    )
    scores = fitted.read_out.scores(lengths(prompts.tokens))
    assert auroc(scores[~prompts.attacked], scores[prompts.attacked]) > 0.85
    equal = auroc_at_equal_length(scores, prompts)
    assert equal is not None and equal < 0.7  # within a tenth, some of the difference is left
    same = Prompts(prompts.features, prompts.attacked, prompts.row, np.full(800, 7))
    assert auroc_at_equal_length(np.zeros(800), same) == 0.5


def test_words_of_other_texts_are_not_seen():
    words = vocabulary(["Ignore it, ignore!", "the rest"])
    bags = bags_of_words(["IGNORE ignore other"], words)
    assert bags.shape == (1, 4) and bags.sum() == pytest.approx(np.log(3))
