"""Invariant I1 on the real demo model over real triplets: tree against separate forwards.

In float64, which tells rounding from error: in float32 the two ways' gradients differ by about
1e-4 after 30 layers, as `python -m benchmarks.step` shows.
"""

from __future__ import annotations

import pytest
import torch

from causal_core.config import LoraSection, LossSection, ModelSection
from causal_core.errors import ModelError
from causal_core.loss.objective import needs_of
from causal_core.model.causal_model import build_model
from causal_core.pretrained.loading import load_base, load_tokenizer
from causal_core.tokens.dataset import load_dataset
from causal_core.tokens.prompts import build_prompt_encoder
from causal_core.trees.packing import FLAT, cut_micro_batches
from tests.tiny import gradients, micro_batch_gradient, plain_loss

pytestmark = pytest.mark.slow


def test_tree_equals_separate_forwards_on_real_triplets(shared_data, tmp_path, capsys):
    config = ModelSection()
    try:
        base = load_base(config, torch.device("cpu"))
    except ModelError as error:
        pytest.skip(str(error))
    torch.set_num_threads(2)
    encoder = build_prompt_encoder(load_tokenizer(config))
    dataset = load_dataset(
        [f"{shared_data / 'triplets_real.jsonl'}#train"], encoder, max_length=1024,
        overlong="error", cache=tmp_path,
    )  # fmt: skip
    triplets = [dataset.tokens(i) for i in (0, 300, 301, 600)]
    model = build_model(base, LoraSection(dropout=0.0), seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.trainable_parameters().items():
        if "lora_B" in name:
            with torch.no_grad():
                parameter.normal_(0, 0.01, generator=generator)
    model.double()
    loss = LossSection(lambda_causal=0.5, lambda_spurious=0.5)
    value, _ = plain_loss(model, triplets, loss)
    value.backward()
    expected = gradients(model)
    model.zero_grad()
    packed = 0.0
    for micro in cut_micro_batches(triplets, needs_of(loss), 1500, FLAT):
        packed += micro_batch_gradient(model, micro.batch, loss, triplets)
    found = gradients(model)
    whole = [torch.cat([g.flatten().double() for g in x.values()]) for x in (found, expected)]
    loss_error = abs(packed - float(value.detach())) / abs(float(value.detach()))
    gradient_error = float((whole[0] - whole[1]).norm() / whole[1].norm())
    worst = max(
        float((found[n].double() - e.double()).norm() / e.double().norm().clamp_min(1e-12))
        for n, e in expected.items()
    )
    with capsys.disabled():
        print(
            f"\ntree vs separate forwards: loss {loss_error:.1e}, gradient {gradient_error:.1e}, "
            f"worst single tensor {worst:.1e}"
        )
    assert loss_error < 1e-6 and gradient_error < 1e-5
