"""Why `test_engines.py` may ask for what it asks: what rounding does to a run, and what errors do.

1. Gradients that are off by one float32 rounding leave the weights well within the limit.
2. AdamW divides a gradient by its own size, so the difference lies where that is all but zero.
3. A run with an error, the smallest that is known included, is well beyond the limit.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.engines import EIGHT_BIT_PLAIN, NF4_PLAIN, PLAIN, STEPS, TRIM, difference
from causal_core.engines.plain import PlainEngine
from causal_core.run.exercise import run_exercise, write_base
from tests.causal_core.engines.test_engines import FLOAT32_LIMIT

ROUNDING = 2.0**-24  # float32's, relative to what is rounded
# Two micro-batches per step, so that one of them can be wrong.
CASES = [replace(case, tokens=120) for case in (PLAIN, NF4_PLAIN, EIGHT_BIT_PLAIN)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("rounding")


@pytest.fixture(scope="module")
def weights_of(directory):
    """Weights after a case's run, in which what is patched into the engine takes part."""
    base = write_base(directory / "base")

    def run(case, name):
        exercise = case.exercise(base, name, last=STEPS)
        run_exercise(exercise, directory, torch.device("cpu"), rank=0, workers=1)
        return directory / f"{name}.safetensors"

    return run


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def right(request, weights_of):
    """A case, its weights when nothing is patched, and what is left out in comparing them."""
    case = request.param
    return case, weights_of(case, f"right-{case.name}"), 0.0 if case.double else TRIM


def round_gradients(patch):
    """Every element of a gradient is off by one rounding of the tensor's largest, up or down.

    As a sum over micro-batches or workers in another order may be, where its terms cancel.
    """
    plain_clip, generator = PlainEngine.clip, torch.Generator().manual_seed(0)

    def clip(engine, max_norm):
        for parameter in engine.parameters.values():
            grad = parameter.grad
            signs = torch.randint(0, 2, grad.shape, generator=generator, dtype=grad.dtype) * 2 - 1
            grad.add_(ROUNDING * grad.abs().max() * signs)
        return plain_clip(engine, max_norm)

    patch.setattr(PlainEngine, "clip", clip)


def test_rounding_stays_well_within_the_limit(right, weights_of, monkeypatch):
    case, expected, trim = right
    round_gradients(monkeypatch)
    found = difference(weights_of(case, "rounded"), expected, trim)
    assert 2 * ROUNDING < found < FLOAT32_LIMIT / 3


def test_rounding_matters_where_a_gradient_is_all_but_zero(weights_of, monkeypatch):
    """In float64, so that the rounding put in is the only one. Smallest: at some step the root of
    the second moment is least, compared with the largest element of the tensor's gradient."""
    sizes = {}
    plain_step = PlainEngine.step

    def step(engine, learning_rate):
        largest = {name: p.grad.abs().max() for name, p in engine.parameters.items()}
        plain_step(engine, learning_rate)
        for name, parameter in engine.parameters.items():
            state = engine.optimizer.state[parameter]
            mean = state["exp_avg_sq"] / (1 - 0.999 ** state["step"])
            sizes.setdefault(name, []).append(mean.sqrt() / largest[name])

    with monkeypatch.context() as patch:
        patch.setattr(PlainEngine, "step", step)
        expected = load_file(weights_of(PLAIN, "exact"))
    round_gradients(monkeypatch)
    found = load_file(weights_of(PLAIN, "rounded"))
    apart = torch.cat([(found[name] - expected[name]).square().flatten() for name in sizes])
    size = torch.cat([torch.stack(each).amin(0).flatten() for each in sizes.values()])
    smallest = size.argsort()[: int(TRIM * len(size))]
    assert apart[smallest].sum() / apart.sum() > 0.5


def count_one_twice(patch):
    """The last micro-batch of every step."""
    plain = PlainEngine.accumulate

    def accumulate(engine, batch, loss_of, last):
        factor = 2.0 if last else 1.0
        plain(engine, batch, lambda output, of: factor * loss_of(output, of), last)

    patch.setattr(PlainEngine, "accumulate", accumulate)


def skip_alone(patch):
    """The last step, which no other run skips."""
    plain, steps = PlainEngine.step, iter(range(STEPS))

    def step(engine, learning_rate):
        if next(steps) == STEPS - 1:
            engine.discard()
        else:
            plain(engine, learning_rate)

    patch.setattr(PlainEngine, "step", step)


def do_not_clip(patch):
    plain = PlainEngine.clip
    patch.setattr(PlainEngine, "clip", lambda engine, max_norm: plain(engine, float("inf")))


def do_not_decay(patch):
    """At a learning rate of 1e-3, six steps of it are 6e-5 of a weight."""
    plain = PlainEngine.step

    def step(engine, learning_rate):
        for group in engine.optimizer.param_groups:
            group["weight_decay"] = 0.0
        plain(engine, learning_rate)

    patch.setattr(PlainEngine, "step", step)


@pytest.mark.parametrize("error", [count_one_twice, skip_alone, do_not_clip, do_not_decay])
def test_an_error_is_well_beyond_the_limit(right, weights_of, monkeypatch, error):
    case, expected, trim = right
    error(monkeypatch)
    assert difference(weights_of(case, "wrong"), expected, trim) > 3 * FLOAT32_LIMIT
