"""One objective on one data set: first that all compute the same, then how fast, in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.peers.contender import Contender, Measured
from benchmarks.peers.models import difference
from benchmarks.peers.objectives import Objective

# Told of what is about to run, by its number and of how many.
Progress = Callable[[str], None]


class DifferentWorkError(Exception):
    """Two sides that should compute the same do not: their times say nothing."""


def measure(
    objective: Objective,
    ours: Contender,
    peers: Sequence[Contender],
    repeats: int,
    seconds: float,
    progress: Progress,
) -> dict[str, Any]:
    """Figures of all contenders, ours first, as JSON.

    The first round is followed closely, for peak and gradient, and not timed. Rounds end after
    `repeats`, or as soon as one more would begin after `seconds`; there is at least one.

    Raises:
        DifferentWorkError: a peer's gradient or loss is not ours.
    """
    everyone = [ours, *peers]
    closely: list[Measured] = []
    for contender in everyone:
        progress(f"{contender.title}: gradient and peak")
        closely.append(contender.run(closely=True))
    apart = [_apart(objective, found, closely[0]) for found in closely]
    for contender, far in zip(everyone, apart, strict=True):
        check_same(objective, contender.title, far)
    taken: list[list[float]] = [[] for _ in everyone]
    begin = time.monotonic()
    for number in range(repeats):
        if number and time.monotonic() - begin > seconds:
            break
        for contender, times in zip(everyone, taken, strict=True):
            progress(f"{contender.title}: {number + 1} of {repeats}")
            times.append(contender.run().seconds)
    return {
        "rows": len(objective.rows),
        "path_tokens": objective.path_tokens,
        "nodes": objective.nodes(),
        "labels": objective.labels,
        "terms": objective.terms(),
        "contenders": [
            {
                "title": contender.title,
                "batch": contender.batch,
                "seconds": times,
                "loss": found.loss,
                "peak_bytes": found.peak_bytes,
                **far,
            }
            for contender, times, found, far in zip(everyone, taken, closely, apart, strict=True)
        ],
    }


def largest_difference(labels: int) -> float:
    """How far two float32 gradients of the same work may be apart, relative to their length.

    One label of n more or less weighs about 1 / n of a gradient. A tenth of that shows it, and is
    far above float32's rounding in a net of 30 layers, 1e-5 to 1e-4.
    """
    return 0.1 / labels


def check_same(objective: Objective, title: str, apart: dict[str, float]) -> None:
    """Raises `DifferentWorkError` where a contender's gradient or loss is not ours."""
    bound = largest_difference(objective.labels)
    if max(apart.values()) > bound:
        raise DifferentWorkError(
            f"{title} and causal-ray compute different things on {objective.name!r}: gradient "
            f"{apart['gradient_difference']:.1e}, loss {apart['loss_difference']:.1e} apart where "
            f"{bound:.1e} is allowed; their times say nothing"
        )


def _apart(objective: Objective, found: Measured, expected: Measured) -> dict[str, float]:
    assert found.gradient is not None and expected.gradient is not None
    return {
        "gradient_difference": difference(found.gradient, expected.gradient),
        "loss_difference": abs(found.loss - expected.loss) / abs(expected.loss),
    }
