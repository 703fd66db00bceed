"""Both libraries give the same products, and neither keeps what it made for old shapes.

1. Values and the gradient of the input agree for whole, transposed and partial matrices.
2. Other types, and what oneDNN is slow at, go torch's own way.
3. Thousands of new shapes do not fill the memory.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from causal_core.model import matmul
from causal_core.model.matmul import LIBRARIES, fastest_library, linear, use_frozen_linear
from tests.causal_core.step.test_exactness import LOSSES, packed_gradients
from tests.tiny import random_triplets, relative_error, tiny_model

needs_onednn = pytest.mark.skipif(not matmul.has_onednn(), reason="torch without oneDNN")


@pytest.fixture(autouse=True)
def restore():
    before = matmul.in_use()
    yield
    matmul.use(before)


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


def test_the_fastest_is_one_that_can_be_used(monkeypatch):
    matmul.use(fastest_library())
    monkeypatch.setattr(matmul, "has_onednn", lambda: False)
    assert fastest_library() == "torch"
    for name in ("onednn", "cublas"):
        with pytest.raises(ValueError, match=name):
            matmul.use(name)


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
