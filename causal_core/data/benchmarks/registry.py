"""The test sets of others that can be read, and the one function that reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from causal_core.data.benchmarks import alpacafarm, bipia, notinject, sep, spikee, tensortrust
from causal_core.data.benchmarks.cases import BenchmarkRows, Case, Dropped, collect
from causal_core.data.benchmarks.files import Content, read_contents
from causal_core.errors import UserError
from causal_core.visible_text import quoted

_Reader = Callable[[Sequence[Content], Dropped, int | None], Iterator[Case]]


@dataclass(frozen=True)
class Benchmark:
    """A kind of test set: what its files hold, and what reads them."""

    files: str
    read: _Reader


BENCHMARKS: Mapping[str, Benchmark] = {
    "alpacafarm": Benchmark(alpacafarm.WANTED, alpacafarm.read),
    "bipia": Benchmark(bipia.WANTED, bipia.read),
    "notinject": Benchmark(notinject.WANTED, notinject.read),
    "sep": Benchmark(sep.WANTED, sep.read),
    "spikee": Benchmark(spikee.WANTED, spikee.read),
    "tensortrust": Benchmark(tensortrust.WANTED, tensortrust.read),
}


def read_benchmark(
    name: str, paths: Sequence[str | Path], attacks: int | None = None
) -> BenchmarkRows:
    """The rows of a test set of others, in canonical form.

    Args:
        name: One of `BENCHMARKS`.
        paths: Its files, in any order.
        attacks: Of a row at most, where attacks are combined with rows; None: all.

    Raises:
        UserError: an unknown name.
        DataError: a file of another layout, a damaged one, or no usable row.
    """
    name = name.lower()  # as their authors write them: SEP, BIPIA
    if name not in BENCHMARKS:
        known = ", ".join(BENCHMARKS)
        raise UserError(f"{quoted(name)} is no benchmark that can be read; known: {known}")
    if not paths:
        raise UserError(f"no files of {name} were given: it has {BENCHMARKS[name].files}")
    contents = [content for path in paths for content in read_contents(path)]
    dropped = Dropped()
    return collect(name, BENCHMARKS[name].read(contents, dropped, attacks), dropped)
