"""Invariants I1 and I2: the packed step equals separate unpadded forwards, however it is cut.

1. Loss and every gradient of packed trees equal those of separate forwards, for every term and
   contrastive kind, over random triplets, token budgets and row costs: in float64 to 1e-10
   for every single tensor, which tells rounding from error, and in float32 to 1e-5.
2. Any partition of a global batch into shares and micro-batches gives the same gradient.
3. Gradient checkpointing changes nothing.
4. Padding changes nothing.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from causal_core.config import LossSection
from causal_core.loss.objective import needs_of
from causal_core.tokens.batches import share
from causal_core.trees.packing import (
    FLAT,
    INTERVALS,
    ROWS,
    Packing,
    RowCost,
    cut_micro_batches,
)
from causal_core.trees.prefix_tree import TreeRow, collate
from tests.tiny import (
    ALL_TERMS,
    gradients,
    micro_batch_gradient,
    plain_forward,
    plain_loss,
    random_triplets,
    relative_error,
    tiny_model,
)

TOLERANCE = 1e-10  # in float64, which rounds to 1e-16
ALL_LAYOUTS = pytest.mark.parametrize(
    "packing", [ROWS, FLAT, INTERVALS], ids=["rows", "flat", "intervals"]
)

LOSSES = {
    "all": LossSection(**ALL_TERMS),
    "worst_case": LossSection(**ALL_TERMS, worst_case=0.5),
    **{
        name: LossSection(**{key: 1.0 if key == name else 0.0 for key in ALL_TERMS})
        for name in ALL_TERMS
    },
    "info_nce": LossSection(**{**ALL_TERMS, "lambda_spurious": 0.0}, contrastive="info_nce"),
    "triplet": LossSection(
        **{**ALL_TERMS, "lambda_spurious": 0.0}, contrastive="triplet", margin=1.5
    ),
}


def packed_gradients(model, triplets, loss, budget, packing=FLAT, workers=1):
    """Loss and gradients by packed micro-batches, summed over the shares of `workers`."""
    model.zero_grad(set_to_none=True)
    total = 0.0
    for positions in share([t.size_bound() for t in triplets], workers):
        mine = [triplets[i] for i in positions]
        for micro in cut_micro_batches(mine, needs_of(loss), budget, packing) if mine else []:
            total += micro_batch_gradient(model, micro.batch, loss, triplets)
    return total, gradients(model)


@cache
def reference_of(name, injections):
    """Loss and gradients that every layout must equal, by separate forwards."""
    model, triplets = tiny_model().double(), random_triplets(6, seed=1, injections=injections)
    value, _ = plain_loss(model, triplets, LOSSES[name])
    value.backward()
    return float(value.detach()), gradients(model)


@ALL_LAYOUTS
@pytest.mark.parametrize("injections", [(1, 1), (0, 4)], ids=["one", "several"])
@pytest.mark.parametrize("name", LOSSES)
def test_packed_equals_separate_forwards_for_every_term(name, injections, packing):
    model, triplets = tiny_model().double(), random_triplets(6, seed=1, injections=injections)
    value, expected = reference_of(name, injections)
    packed, found = packed_gradients(model, triplets, LOSSES[name], 260, packing)
    assert packed == pytest.approx(value, rel=TOLERANCE)
    assert relative_error(found, expected) < TOLERANCE


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 7),
    seed=st.integers(0, 10_000),
    systems=st.integers(1, 3),
    budget=st.integers(120, 400),
    injections=st.sampled_from([(1, 1), (0, 2), (3, 3)]),
    name=st.sampled_from(["all", "worst_case"]),
    packing=st.one_of(
        st.sampled_from([0.0, 1 / 4096, 1.0]).map(
            lambda q: Packing(flat=False, row_cost=RowCost(quadratic=q))
        ),
        st.sampled_from([0.0, 30.0, 1e9]).map(lambda cost: Packing(flat=True, call_cost=cost)),
    ),
    workers=st.integers(1, 3),
)
def test_any_packing_and_partition_gives_the_same_gradient(
    count, seed, systems, budget, injections, name, packing, workers
):
    model = tiny_model().double()
    triplets = random_triplets(count, seed, systems, injections=injections)
    loss = LOSSES[name]
    value, _ = plain_loss(model, triplets, loss)
    value.backward()
    expected = gradients(model)
    packed, found = packed_gradients(model, triplets, loss, budget, packing, workers)
    assert packed == pytest.approx(float(value.detach()), rel=TOLERANCE, abs=TOLERANCE)
    assert relative_error(found, expected) < TOLERANCE


@ALL_LAYOUTS
def test_packed_equals_separate_forwards_in_float32(packing):
    model, triplets, loss = tiny_model(), random_triplets(12, seed=2), LOSSES["all"]
    value, _ = plain_loss(model, triplets, loss)
    value.backward()
    expected = gradients(model)
    packed, found = packed_gradients(model, triplets, loss, 200, packing)
    assert packed == pytest.approx(float(value.detach()), rel=1e-5)
    whole = [torch.cat([g.flatten() for g in grads.values()]) for grads in (found, expected)]
    assert float((whole[0] - whole[1]).norm() / whole[1].norm()) < 1e-5


@ALL_LAYOUTS
def test_gradient_checkpointing_changes_nothing(packing):
    triplets, loss = random_triplets(4, seed=3), LOSSES["all"]
    plain, checkpointed = tiny_model().double(), tiny_model(gradient_checkpointing=True).double()
    checkpointed.train()
    plain.train()
    _, expected = packed_gradients(plain, triplets, loss, 300, packing)
    _, found = packed_gradients(checkpointed, triplets, loss, 300, packing)
    assert checkpointed.peft_model.get_base_model().is_gradient_checkpointing
    assert relative_error(found, expected) < TOLERANCE


@settings(max_examples=25, deadline=None)
@given(
    data=st.lists(
        st.lists(st.lists(st.integers(3, 9), min_size=1, max_size=9), min_size=1, max_size=5),
        min_size=1,
        max_size=3,
    )
)
def test_hidden_states_of_random_tries_equal_separate_forwards(data):
    """Few distinct tokens, so that prefixes are shared at random depths, within padded rows."""
    model = tiny_model().double().eval()
    rows = []
    for sequences in data:
        row = TreeRow()
        for sequence in sequences:
            row.add_prompt(sequence)
        rows.append(row)
    batch = collate(rows, groups=())
    base = model.peft_model.get_base_model()
    with torch.no_grad():
        hidden = base.get_decoder()(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask,
            position_ids=batch.position_ids, use_cache=False,
        ).last_hidden_state  # fmt: skip
        for r, (row, sequences) in enumerate(zip(rows, data, strict=True)):
            distinct = {tuple(s[: k + 1]) for s in sequences for k in range(len(s))}
            assert len(row.tree) == len(distinct)  # every distinct prefix exactly once
            for (_, path), sequence in zip(row.pooled, sequences, strict=True):
                torch.testing.assert_close(
                    hidden[r, path], plain_forward(model, sequence)[0], rtol=0, atol=TOLERANCE
                )


def test_an_empty_prompt_is_an_error_not_a_zero_vector():
    with pytest.raises(ValueError, match="empty prompt"):
        TreeRow().add_prompt([])


def test_logits_exist_on_label_positions_only():
    triplets, loss, model = random_triplets(3, seed=5), LOSSES["all"], tiny_model()
    answers = sum(2 * len(t.benign_answer) + len(t.only.answer) for t in triplets)
    computed = 0
    for micro in cut_micro_batches(triplets, needs_of(loss), 10_000, FLAT):
        computed += model(micro.batch).label_hidden.shape[0]
        assert micro.batch.label_index.unique().numel() == len(micro.batch.label_index)
    assert 0 < computed <= answers


def test_nothing_is_computed_that_no_term_needs():
    triplets = random_triplets(4, seed=6)

    def nodes(loss):
        return sum(m.batch.nodes for m in cut_micro_batches(triplets, needs_of(loss), 10_000, FLAT))

    by_loss = {name: nodes(loss) for name, loss in LOSSES.items()}
    benign_only = {tuple(t.system + t.benign + t.benign_answer[:-1])[: k + 1] for t in triplets
                   for k in range(len(t.system + t.benign + t.benign_answer) - 1)}  # fmt: skip
    assert by_loss["lambda_task"] >= len(benign_only)
    assert by_loss["lambda_task"] < by_loss["lambda_robust"] < by_loss["all"]
    assert by_loss["lambda_task"] < by_loss["lambda_causal"] < by_loss["all"]
