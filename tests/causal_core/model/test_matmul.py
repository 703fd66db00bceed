"""Both libraries give the same products, and neither keeps what it made for old shapes.

1. Values and the gradient of the input agree for whole, transposed and partial matrices.
2. Other types, and what oneDNN is slow at, go torch's own way.
3. A model whose adapter is switched off multiplies by the library in use as well.
4. Thousands of new shapes do not fill the memory.
5. In bfloat16 a product with frozen weights errs by three unit roundoffs at most, the gradient of a
   model by no more than such errors in every product explain, and nothing else is rounded.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from causal_core.loss.objective import needs_of
from causal_core.model import lora, matmul
from causal_core.model.lora import without_adapter
from causal_core.model.matmul import (
    LIBRARIES,
    bfloat16_speed,
    fastest_library,
    frozen_linear,
    linear,
    use_frozen_linear,
)
from causal_core.trees.packing import FLAT, cut_micro_batches
from tests.causal_core.step.test_exactness import LOSSES, packed_gradients
from tests.tiny import random_triplets, relative_error, tiny_model

needs_onednn = pytest.mark.skipif(not matmul.has_onednn(), reason="torch without oneDNN")


@pytest.fixture(autouse=True)
def restore():
    with matmul.using(matmul.in_use()):
        yield


@needs_onednn
@pytest.mark.parametrize("rows", [0, 1, 37])
@pytest.mark.parametrize(
    "view",
    [
        lambda m: m,
        lambda m: m.t().contiguous().t(),
        lambda m: torch.cat([m, m], 1)[:, : m.shape[1]],
    ],
    ids=["whole", "transposed", "part"],
)
def test_the_libraries_agree(rows, view):
    torch.manual_seed(0)
    x, weight, bias = view(torch.randn(rows, 48)), view(torch.randn(24, 48)), torch.randn(24)
    for arguments in ((x, weight), (x, weight, bias)):
        exact = F.linear(*(m.double() for m in arguments))
        # Whatever their order, a sum of n rounded products errs by n roundings of its terms at most
        # (Higham, Accuracy and Stability of Numerical Algorithms, 3.1).
        bound = (x.shape[1] + 1) * 2.0**-24 * F.linear(*(m.double().abs() for m in arguments))
        for library in LIBRARIES:
            matmul.use(library)
            assert bool(((linear(*arguments) - exact).abs() <= bound).all()), library


@needs_onednn
def test_partial_matrices_and_other_types_go_torch_s_own_way(monkeypatch):
    calls = []
    monkeypatch.setattr(matmul, "_onednn", lambda *_: calls.append(_))
    matmul.use("onednn")
    weight = torch.randn(8, 16)
    linear(torch.randn(4, 32)[:, :16], weight)
    linear(torch.randn(4, 16).double(), weight.double())
    linear(torch.randn(4, 16).bfloat16(), weight.bfloat16())
    assert not calls
    linear(torch.randn(4, 16), weight)
    assert len(calls) == 1


@needs_onednn
def test_the_gradient_of_a_model_is_as_near_to_float64_by_both():
    """One library's rounding is the measure of the other's: neither errs by ten times as much."""
    triplets = random_triplets(6, seed=3)
    _, exact = packed_gradients(tiny_model().double(), triplets, LOSSES["all"], 300)
    errors = {}
    for library in LIBRARIES:
        matmul.use(library)
        _, found = packed_gradients(tiny_model(), triplets, LOSSES["all"], 300)
        errors[library] = relative_error(found, exact)
    assert max(errors.values()) < 10 * min(errors.values()), errors


def test_a_frozen_linear_has_the_input_s_gradient_alone():
    layer = nn.Linear(16, 8, dtype=torch.float64).requires_grad_(False)
    x = torch.randn(2, 3, 16, dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.grad(layer(x).sin().sum(), x)[0]
    use_frozen_linear(layer)
    torch.testing.assert_close(torch.autograd.grad(layer(x).sin().sum(), x)[0], expected)
    layer.requires_grad_(True)  # trained after all: torch's own forward
    layer(x).sum().backward()
    assert layer.weight.grad is not None


@needs_onednn
def test_without_its_adapter_a_model_multiplies_by_the_library_in_use(monkeypatch):
    model, loss, used = tiny_model(), LOSSES["all"], []
    real = matmul._onednn

    def watched(x, weight, bias):
        used.append(weight.data_ptr())
        return real(x, weight, bias)

    monkeypatch.setattr(matmul, "_onednn", watched)
    batch = cut_micro_batches(random_triplets(2, seed=1), needs_of(loss), 300, FLAT)[0].batch
    with matmul.using("onednn"), without_adapter(model):
        model(batch)
    frozen = [p for name, p in model.named_parameters() if name.endswith("base_layer.weight")]
    assert sorted(used) == sorted(weight.data_ptr() for weight in frozen)


def test_the_fastest_is_one_that_can_be_used(monkeypatch):
    matmul.use(fastest_library())
    monkeypatch.setattr(matmul, "has_onednn", lambda: False)
    assert fastest_library() == "torch"
    for name in ("onednn", "cublas"):
        with pytest.raises(ValueError, match=name):
            matmul.use(name)


UNIT = 2.0**-8  # unit roundoff of bfloat16: half of the distance from 1 to the next number


@pytest.mark.parametrize("view", [lambda m: m, lambda m: m.t().contiguous().t()])
@pytest.mark.parametrize("bias", [None, torch.linspace(-3.0, 3.0, 24)])
def test_a_product_in_bfloat16_errs_by_three_roundings(view, bias):
    torch.manual_seed(0)
    x, weight = view(torch.randn(37, 48)), view(torch.randn(24, 48))
    exact = F.linear(*(None if m is None else m.double() for m in (x, weight, bias)))
    # Of each operand and of the result, beside float32's own roundings of the sum.
    share = (1 + UNIT) ** 3 - 1 + (x.shape[1] + 2) * 2.0**-23
    bound = share * (F.linear(x.double().abs(), weight.double().abs()) + (0 if bias is None else 3))
    with matmul.using("torch", bfloat16=True):
        found = frozen_linear(x, weight, bias)
        assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
        wide = frozen_linear(*(None if m is None else m.double() for m in (x, weight, bias)))
    assert found.dtype is torch.float32
    assert bool(((found - exact).abs() <= bound).all())
    assert float((found - exact).abs().max()) > 2.0**-12, "it is bfloat16"
    assert torch.equal(wide, exact) and not matmul.in_bfloat16()


def test_the_gradient_in_bfloat16_is_within_what_such_roundings_explain(monkeypatch):
    """The truth in float64, and the measure: the same with errors of one whole unit roundoff, of
    random signs, in both operands and the result of every product with frozen weights. Real
    roundings are that large only at worst, half of it or less in the mean."""
    triplets = random_triplets(6, seed=3)
    _, exact = packed_gradients(tiny_model().double(), triplets, LOSSES["all"], 300)
    with matmul.using("torch", bfloat16=True):
        _, found = packed_gradients(tiny_model(), triplets, LOSSES["all"], 300)

    def wrong(m):
        return m * (1 + UNIT * (torch.randint(0, 2, m.shape) * 2 - 1))

    def wrong_linear(x, weight, bias=None):
        y = wrong(F.linear(wrong(x), wrong(weight)))
        return y if bias is None else y + bias

    explained = []
    for seed in range(3):
        model = tiny_model().double()
        torch.manual_seed(seed)
        with monkeypatch.context() as patch:
            patch.setattr(lora, "frozen_linear", wrong_linear)
            _, gradient = packed_gradients(model, triplets, LOSSES["all"], 300)
        explained.append(relative_error(gradient, exact))
    error = relative_error(found, exact)
    assert error <= max(explained)
    assert error > 1e-4, "beyond float32's rounding: it is bfloat16"


def test_adapter_head_and_logits_are_not_rounded(monkeypatch):
    """Each product in bfloat16 is one of an adapted layer with its frozen weight, either way."""
    model, seen = tiny_model(), set()

    def rounded(x, weight, bias):
        seen.add((weight.data_ptr(), tuple(weight.shape)))
        return F.linear(x, weight, bias)

    monkeypatch.setattr(matmul, "_rounded", rounded)
    with matmul.using("torch", bfloat16=True):
        packed_gradients(model, random_triplets(3, seed=1), LOSSES["all"], 300)
    weights = {n: p for n, p in model.named_parameters() if n.endswith("base_layer.weight")}
    forward = {(w.data_ptr(), tuple(w.shape)) for w in weights.values()}
    # Embeddings are frozen: what reads them alone has no gradient to hand back.
    first = ("layers.0.self_attn.q", "layers.0.self_attn.k", "layers.0.self_attn.v")
    backward = {
        (w.data_ptr(), tuple(w.t().shape))
        for name, w in weights.items()
        if not any(part in name for part in first)
    }
    assert seen == forward | backward


def test_kept_copies_change_no_number_and_go_with_their_weights():
    torch.manual_seed(0)
    x, weight = torch.randn(5, 48), nn.Parameter(torch.randn(24, 48), requires_grad=False)
    with matmul.using("torch", bfloat16=True):
        anew = frozen_linear(x, weight)
        assert matmul._copies is None
        matmul.use("torch", bfloat16=True, copies=True)
        for _ in range(2):
            assert torch.equal(frozen_linear(x, weight), anew)
        assert len(matmul._copies) == 1
        frozen_linear(torch.randn(5, 24), weight.t())  # a view that nobody else has
        assert len(matmul._copies) == 1
        del weight
        assert not matmul._copies
    assert matmul._copies is None


@torch.no_grad()
def test_a_decoder_s_layers_multiply_alike_with_the_adapter_on_and_off(monkeypatch):
    """A fresh adapter says what the base says, in bfloat16 as well, and no head is rounded."""
    model = tiny_model()
    base = model.peft_model.get_base_model()
    batch = cut_micro_batches(random_triplets(2, seed=1), needs_of(LOSSES["all"]), 300, FLAT)[
        0
    ].batch
    layers = [
        module
        for module in base.get_decoder().modules()
        if type(module) is nn.Linear and not module.weight.requires_grad
    ]
    for module in model.modules():
        if hasattr(module, "lora_B"):
            module.lora_B["default"].weight.zero_()
    exact = model(batch).label_hidden
    assert matmul.round_layers(base.get_decoder()) == 2 * sum(m.weight.numel() for m in layers)
    assert torch.equal(model(batch).label_hidden, exact), "float32 stays as it was"
    rounded, real = [], matmul._rounded
    monkeypatch.setattr(matmul, "_rounded", lambda x, w, b: rounded.append(id(w)) or real(x, w, b))
    with matmul.using(matmul.in_use(), bfloat16=True):
        on = model(batch).label_hidden
        with without_adapter(model):
            off = model(batch).label_hidden
        model.logits(off)
    assert torch.equal(on, off) and not torch.equal(on, exact)
    assert sorted(rounded) == sorted(2 * [id(module.weight) for module in layers])


def test_the_speed_of_bfloat16_is_one_of_both_ways(monkeypatch):
    assert 1e-3 < bfloat16_speed("torch") < 1e3
    real = matmul._rounded

    def slow(*arguments):
        for _ in range(50):
            result = real(*arguments)
        return result

    monkeypatch.setattr(matmul, "_SIDE", 64)
    before = bfloat16_speed("torch")
    monkeypatch.setattr(matmul, "_rounded", slow)
    assert bfloat16_speed("torch") < before / 5
    assert not matmul.in_bfloat16()


@needs_onednn
def test_new_shapes_do_not_fill_the_memory():
    program = """
import torch
from causal_core.model import matmul
from causal_core.model.matmul import linear

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20

matmul.use("onednn")
torch.set_num_threads(1)
weight = torch.randn(1536, 576)
for rows in range(200, 600, 2):
    linear(linear(torch.randn(rows, 576), weight), weight.t())
    if rows == 240:
        before = resident()
print(resident() - before)
"""
    grown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert float(grown.stdout) < 100, grown.stderr  # MiB; by the libraries' defaults 270
