"""The loss of some labels at a time is the loss of all.

1. Any cut covers every prediction once, keeps a triplet together and stays within its size.
2. Sums, value and gradient equal those of plain operations on all logits, and where they are known
   in closed form, that.
"""

from __future__ import annotations

import math
from collections import Counter
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from causal_core.loss.label_loss import (
    WeightedTerm,
    anchor,
    cross_entropy,
    divergence,
    label_loss,
    preference,
)
from causal_core.trees.labels import LabelChunk, cut_labels
from tests.tiny import cross_entropy_sum, kl_sum

HIDDEN, VOCABULARY = 5, 11
TASK_ALONE = [WeightedTerm("task", cross_entropy, ("task",), 1.0)]
PREDICTIONS = st.lists(
    st.tuples(
        st.integers(0, 19), st.integers(0, VOCABULARY - 1), st.integers(0, 5), st.integers(0, 2)
    ),
    max_size=30,
)


def described(chunks: list[LabelChunk], name: str) -> Counter:
    found: Counter = Counter()
    for chunk in chunks:
        group = chunk.groups[name]
        slots = chunk.slots[group.position].tolist()
        found.update(zip(slots, group.target.tolist(), group.owner.tolist(), strict=True))
    return found


@given(PREDICTIONS, PREDICTIONS, st.integers(1, 25))
def test_a_cut_covers_everything_once(first, second, at_once):
    chunks = cut_labels({"a": first, "b": second}, at_once)
    assert described(chunks, "a") == Counter(prediction[:3] for prediction in first)
    assert described(chunks, "b") == Counter(prediction[:3] for prediction in second)
    owners = [
        {owner for group in chunk.groups.values() for owner in group.owner.tolist()}
        for chunk in chunks
    ]
    assert sum(map(len, owners)) == len(set().union(*owners))  # each in one chunk
    for chunk, who in zip(chunks, owners, strict=True):
        assert len(chunk.slots) == len(chunk.slots.unique())
        assert len(chunk.slots) <= at_once or len(who) == 1


@settings(deadline=None)
@given(PREDICTIONS, PREDICTIONS, st.integers(0, 8), st.integers(1, 25), st.integers(0, 99))
def test_the_loss_is_that_of_all_logits_at_once(task, robust, pairs, at_once, seed):
    torch.manual_seed(seed)
    head = nn.Linear(HIDDEN, VOCABULARY).double()
    hidden = torch.randn(20, HIDDEN, dtype=torch.float64, requires_grad=True)
    places = torch.randint(0, 20, (2, pairs))
    owners = torch.randint(0, 3, (pairs,))
    clean, attacked = (
        [(int(p), 0, int(o), 0) for p, o in zip(places[side], owners, strict=True)]
        for side in (0, 1)
    )
    logits = head(hidden)

    def columns(group):
        table = torch.tensor(group, dtype=torch.long).reshape(-1, 4)
        return logits[table[:, 0]], table[:, 1]

    expected = {
        "task": cross_entropy_sum(*columns(task)),
        "robust": cross_entropy_sum(*columns(robust)),
        "divergence": kl_sum(logits[places[0]], logits[places[1]]),
    }
    total = 0.5 * expected["task"] + 0.7 * expected["robust"] + 0.3 * expected["divergence"]
    (gradient,) = torch.autograd.grad(2.0 * total, hidden)

    groups = {"task": task, "robust": robust, "clean": clean, "attacked": attacked}
    terms = [
        WeightedTerm("task", cross_entropy, ("task",), 0.5),
        WeightedTerm("robust", cross_entropy, ("robust",), 0.7),
        WeightedTerm("divergence", divergence, ("clean", "attacked"), 0.3),
    ]
    value, sums = label_loss(hidden, head, cut_labels(groups, at_once), terms)
    assert sums.keys() == expected.keys()
    for name, wanted in expected.items():
        assert not sums[name].requires_grad
        torch.testing.assert_close(sums[name], wanted.detach())
    torch.testing.assert_close(value, total)
    torch.testing.assert_close(torch.autograd.grad(2.0 * value, hidden)[0], gradient)
    assert head.weight.grad is None


def test_cross_entropy_of_a_uniform_distribution_is_log_v_per_token():
    chunks = cut_labels({"task": [(0, 0, 0, 0), (1, 3, 0, 0), (2, 7, 0, 0)]})
    _, sums = label_loss(torch.zeros(3, 8), lambda x: x, chunks, TASK_ALONE)
    assert float(sums["task"]) == pytest.approx(3 * math.log(8))


@pytest.mark.parametrize("worst_case", [None, 0.5])
def test_a_chunk_without_predictions_changes_nothing_and_asks_for_one_position(worst_case):
    """Workers whose forwards are collective fill up with such chunks."""
    torch.manual_seed(0)
    hidden = torch.randn(5, 8, requires_grad=True)
    groups = {
        "safe": [(0, 1, 0, 0), (1, 2, 0, 1), (2, 3, 1, 0)],
        "attack": [(3, 4, 0, 0), (4, 5, 1, 0)],
    }
    terms = [
        WeightedTerm("robust", cross_entropy, ("safe",), 0.7),
        WeightedTerm("divergence", divergence, ("attack", "attack"), 0.3),
        WeightedTerm("anchor", anchor, ("attack",), 0.2),
        WeightedTerm("preference", partial(preference, beta=0.5), ("safe", "attack"), 0.6),
    ]
    chunks = cut_labels(groups, 2)
    found = []
    for filled in (chunks, [*chunks, *[chunks[0].without_predictions()] * 2]):
        asked = []

        def logits_of(part, asked=asked):
            asked.append(len(part))
            return part

        value, sums = label_loss(hidden, logits_of, filled, terms, hidden.detach() + 1, worst_case)
        found.append([value, *torch.autograd.grad(value, hidden), *sums.values()])
    assert asked[-4:] == [1, 1, 1, 1]  # of the model and of the reference, twice
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("worst_case", [None, 0.5])
def test_gradients_are_the_values_slopes(worst_case):
    """By finite differences in float64: of preferences, whose pulls have a strength each, and of
    the soft worst case, in which each injection has a weight."""
    torch.manual_seed(0)
    hidden = torch.randn(6, 8, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(6, 8, dtype=torch.float64)
    groups = {
        "safe": [(0, 1, 0, 0), (1, 2, 0, 1), (2, 3, 1, 0)],
        "attack": [(3, 4, 0, 0), (4, 5, 0, 1), (5, 6, 1, 0)],
    }
    terms = [
        WeightedTerm("robust", cross_entropy, ("safe",), 0.7),
        WeightedTerm("preference", partial(preference, beta=0.5), ("safe", "attack"), 0.6),
    ]
    chunks = cut_labels(groups, 4)

    def value(hidden):
        return label_loss(hidden, lambda x: x, chunks, terms, reference, worst_case)[0]

    assert torch.autograd.gradcheck(value, hidden, check_undefined_grad=False)


def divergence_of(teacher, student):
    """Of rows of logits, and its gradient."""
    logits = torch.cat([teacher, student]).requires_grad_()
    count = len(teacher)
    clean = [(i, 0, 0, 0) for i in range(count)]
    attacked = [(count + i, 0, 0, 0) for i in range(count)]
    terms = [WeightedTerm("kl", divergence, ("clean", "attacked"), 1.0)]
    chunks = cut_labels({"clean": clean, "attacked": attacked})
    value, _ = label_loss(logits, lambda x: x, chunks, terms)
    value.backward()
    return value.item(), logits.grad[:count], logits.grad[count:]


def test_the_divergence_is_zero_for_equal_distributions_and_positive_otherwise():
    logits = torch.randn(4, 9, dtype=torch.float64)
    assert divergence_of(logits, logits + 5.0)[0] == pytest.approx(0.0, abs=1e-12)
    p, q = (torch.tensor(values, dtype=torch.float64) for values in ([0.5, 0.5], [0.9, 0.1]))
    expected = float((p * (p / q).log()).sum())
    assert divergence_of(p.log()[None], q.log()[None])[0] == pytest.approx(expected, rel=1e-12)


def test_no_gradient_reaches_the_teacher():
    _, teacher, student = divergence_of(torch.randn(2, 5), torch.randn(2, 5))
    assert teacher.abs().sum() == 0 and student.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_half_types_are_summed_in_float32(dtype):
    head = nn.Linear(HIDDEN, VOCABULARY).to(dtype).requires_grad_(False)
    hidden = torch.randn(6, HIDDEN, dtype=dtype, requires_grad=True)
    chunks = cut_labels({"task": [(i, i, 0, 0) for i in range(6)]}, 4)
    value, sums = label_loss(hidden, head, chunks, TASK_ALONE)
    value.backward()
    assert value.dtype == sums["task"].dtype == torch.float32
    assert hidden.grad.dtype == dtype
    expected = cross_entropy_sum(head(hidden).float(), torch.arange(6))
    torch.testing.assert_close(value, expected)


def test_without_gradients_there_is_none():
    hidden = torch.randn(3, HIDDEN)
    chunks = cut_labels({"task": [(0, 1, 0, 0), (2, 3, 1, 0)]})
    with torch.no_grad():
        head = nn.Linear(HIDDEN, VOCABULARY)
        value, _ = label_loss(hidden, head, chunks, TASK_ALONE)
    assert not value.requires_grad


def test_the_soft_worst_case_lies_between_the_sum_and_the_worst():
    """Three injections of one triplet and one of another, values 1, 2, 3 and 5 nats."""
    nats = torch.tensor([1.0, 2.0, 3.0, 5.0], dtype=torch.float64)
    logits = torch.stack([-nats, (-(-nats).exp()).log1p()], dim=1).requires_grad_()
    entries = [(0, 0, 0, 0), (1, 0, 0, 1), (2, 0, 0, 2), (3, 0, 1, 0)]
    chunks = cut_labels({"task": entries})

    def value(temperature):
        return label_loss(logits, lambda x: x, chunks, TASK_ALONE, worst_case=temperature)[0]

    assert value(None).item() == pytest.approx(11.0)
    assert value(1e7).item() == pytest.approx(11.0, rel=1e-6)
    assert value(1e-3).item() == pytest.approx(3 * 3.0 + 5.0, rel=1e-3)
    (gradient,) = torch.autograd.grad(value(0.5), logits)
    assert gradient[2].norm() > gradient[1].norm() > gradient[0].norm()


def test_without_the_reference_a_term_that_asks_for_it_is_an_error():
    chunks = cut_labels({"task": [(0, 1, 0, 0)]})
    terms = [WeightedTerm("anchor", anchor, ("task",), 1.0)]
    with pytest.raises(ValueError, match="without its adapter"):
        label_loss(torch.zeros(1, 8), lambda x: x, chunks, terms)
