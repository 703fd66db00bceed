"""The peers, as installed, compute the same loss and gradient as ours: what they are timed at is
the same work. Needs the extra `peers`."""

from __future__ import annotations

import pytest

from benchmarks.peers.data_sets import alone, answered
from benchmarks.peers.models import LORA, our_model
from benchmarks.peers.objectives import PREFERENCE, SFT, objective
from benchmarks.peers.ours import ours
from tests.peers_exercise import EXACT, VOCABULARY, base, rows, same
from tests.tiny import norms_in_float64
from tests.tiny_run import tiny_tokenizer

pytest.importorskip("trl")
pytest.importorskip("prefix_grouper")

from benchmarks.peers.dpo import preference_trainer
from benchmarks.peers.grouper import applies, common_prefix, grouped
from benchmarks.peers.sft import padding_free

# TRL's output layer computes in float32 whatever the model does: its log-probabilities, of size
# 10 and less, are off by 2^-24 of that, and a label more or less would be 1e-2.
HEAD_IN_FLOAT32 = 1e-5


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    norms_in_float64(monkeypatch)


@pytest.fixture
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def model():
    return our_model(base()).double()


@pytest.mark.parametrize("batch", [1, 12])
def test_padding_free_sft(batch, model, tokenizer, tmp_path):
    chosen = objective(SFT, rows())
    peer = padding_free(model, base(), tokenizer, chosen, batch, str(tmp_path), LORA)
    same(peer, ours(model, chosen).run(closely=True), HEAD_IN_FLOAT32)


def test_padding_free_sft_on_rows_that_share_nothing(model, tokenizer, tmp_path):
    branches = [branch for row in rows() for branch in answered(row)]
    chosen = objective(SFT, alone(branches, first=range(VOCABULARY - len(branches), VOCABULARY)))
    assert chosen.nodes() == chosen.path_tokens - len(branches)  # the last of an answer is no input
    peer = padding_free(model, base(), tokenizer, chosen, 4, str(tmp_path), LORA)
    same(peer, ours(model, chosen).run(closely=True), HEAD_IN_FLOAT32)


@pytest.mark.parametrize("batch", [1, 4])
def test_direct_preference_optimisation(batch, model, tokenizer, tmp_path):
    chosen = objective(PREFERENCE, rows())
    peer = preference_trainer(model, base(), tokenizer, chosen, batch, str(tmp_path), LORA)
    same(peer, ours(model, chosen).run(closely=True), HEAD_IN_FLOAT32)


@pytest.mark.parametrize("batch", [1, 3])
def test_groups_of_a_prefix(batch, model):
    chosen = objective(SFT, rows())
    assert applies(chosen.rows) and {common_prefix(row) for row in chosen.rows} != {1}
    same(grouped(model, base(), chosen, batch, LORA), ours(model, chosen).run(closely=True), EXACT)


def test_there_is_no_group_without_a_second_branch_or_a_common_token():
    (row,) = rows(count=1)
    assert not applies([row.attacked(None)])
    assert not applies(alone([answered(row)[0]], first=[3]))
