"""The mutation check: does a fast test fail for each deliberate bug of tests/mutants.py?

    python -m tests.mutation [--jobs N] [--only WORD ...]        (make mutants)

Each bug goes into a copy of the tree, and the tests named for it run there in a forked process
that has the libraries imported already, so that a bug takes seconds. First the same tests must
pass without any bug. Ends with 0 when at least 95 % were caught.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import importlib
import os
import pkgutil
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.mutants import MUTANTS, Mutant

REPOSITORY = Path(__file__).resolve().parents[1]
COPIED = ("causal_core", "ray_jobs", "tune_spaces", "tests", "benchmarks", "configs", "docs")
SECONDS_PER_MUTANT, SECONDS_WITHOUT = 180.0, 900.0
LEAST_CAUGHT = 0.95
PASSED, FAILED = 0, 1  # pytest's exit codes; any other says that the tests could not run


@dataclass
class Copy:
    """A copy of the tree that holds one mutant at a time."""

    directory: Path
    pid: int = 0
    mutant: Mutant | None = None
    original: str = ""  # the mutated file's text
    started: float = field(default_factory=time.monotonic)

    def start(self, mutant: Mutant | None, tests: list[str]) -> None:
        """Puts a bug in and runs tests in a forked process."""
        self.mutant, self.started = mutant, time.monotonic()
        if mutant is not None:
            path = self.directory / mutant.file
            self.original = path.read_text(encoding="utf-8")
            path.write_text(mutant.applied(self.original), encoding="utf-8")
        self.pid = os.fork()
        if self.pid == 0:
            code = 70  # only a test run that came to its end says something else
            try:
                code = _run_tests(self.directory, tests)
            finally:
                os._exit(code)

    def outcome(self) -> int | None:
        """The exit code, `FAILED` too for tests that hang; None while they run."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        limit = SECONDS_WITHOUT if self.mutant is None else SECONDS_PER_MUTANT
        if pid == 0 and time.monotonic() - self.started < limit:
            return None
        if pid == 0:
            os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        if self.mutant is not None:
            (self.directory / self.mutant.file).write_text(self.original, encoding="utf-8")
        return FAILED if pid == 0 else os.waitstatus_to_exitcode(status)

    def output(self) -> str:
        return (self.directory / "output").read_text(encoding="utf-8", errors="replace")


def _run_tests(directory: Path, tests: list[str]) -> int:
    """In the child: pytest on the copy, whose packages are imported afresh."""
    os.setsid()
    output = os.open(directory / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(directory)
    sys.path[:] = [str(directory), *(p for p in sys.path if p not in ("", str(REPOSITORY)))]
    os.environ["PYTHONPATH"] = str(directory)  # of processes that a test starts
    import pytest

    options = ["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-profile=mutation"]
    return int(pytest.main([*options, *tests]))


def _warm_up() -> None:
    """Imports in this process what children would import again and again: the libraries."""
    sys.dont_write_bytecode = True
    import pytest  # noqa: F401
    import torch
    from hypothesis import Phase, settings

    # The same examples every time, so that the figures are those of anyone who runs it again; a
    # failing one is enough, nobody reads the smallest.
    settings.register_profile(
        "mutation", derandomize=True, database=None, deadline=None,
        phases=(Phase.explicit, Phase.generate),
    )  # fmt: skip
    torch.set_num_threads(1)  # a pool of threads would not survive a fork
    import causal_core

    for module in pkgutil.walk_packages(causal_core.__path__, "causal_core."):
        importlib.import_module(module.name)
    from tests.tiny import tiny_model

    tiny_model()  # transformers imports most of itself when a model is made
    # Our own are imported afresh by each child, with what was changed in them.
    for name in [name for name in sys.modules if name.partition(".")[0] in COPIED]:
        del sys.modules[name]


@contextlib.contextmanager
def _copies(count: int) -> Iterator[list[Copy]]:
    with tempfile.TemporaryDirectory(prefix="causal-mutants-") as folder:
        made = []
        for number in range(count):
            directory = Path(folder) / str(number)
            for name in COPIED:
                shutil.copytree(REPOSITORY / name, directory / name,
                                ignore=shutil.ignore_patterns("__pycache__"))  # fmt: skip
            for path in REPOSITORY.iterdir():  # what tests read: pyproject.toml, README.md, ...
                if path.is_file():
                    shutil.copy(path, directory / path.name)
            # Compiled once; a mutated file is newer, and children write no bytecode.
            compileall.compile_dir(directory, quiet=1)
            made.append(Copy(directory))
        yield made


def check(mutants: list[Mutant], jobs: int) -> list[Mutant]:
    """Runs every mutant and returns the survivors.

    Raises:
        SystemExit: the tests fail or cannot run without a mutant, or cannot run with one.
    """
    survivors = []
    with _copies(jobs) as copies:
        begin = time.monotonic()
        copies[0].start(None, sorted({test for mutant in mutants for test in mutant.tests}))
        while (code := copies[0].outcome()) is None:
            time.sleep(0.1)
        if code != PASSED:
            raise SystemExit(f"without any mutant the tests do not pass:\n{copies[0].output()}")
        print(f"without a mutant all tests pass ({time.monotonic() - begin:.0f} s)", flush=True)
        waiting, running = list(mutants), []
        free = list(copies)
        while waiting or running:
            while waiting and free:
                copy = free.pop()
                mutant = waiting.pop(0)
                copy.start(mutant, list(mutant.tests))
                running.append(copy)
            time.sleep(0.05)
            for copy in list(running):
                if (code := copy.outcome()) is None:
                    continue
                running.remove(copy)
                free.append(copy)
                assert copy.mutant is not None
                if code not in (PASSED, FAILED):
                    raise SystemExit(f"{copy.mutant.title}: no test could run:\n{copy.output()}")
                if code == PASSED:
                    survivors.append(copy.mutant)
                word = "SURVIVED" if code == PASSED else "caught"
                seconds = time.monotonic() - copy.started
                print(f"{word:8} {seconds:5.1f} s  {copy.mutant.title}", flush=True)
    return survivors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    parser.add_argument("--jobs", type=int, default=cores, help="mutants at a time")
    parser.add_argument("--only", nargs="*", default=[""], metavar="WORD",
                        help="those whose file or text holds one of these words")  # fmt: skip
    options = parser.parse_args()
    chosen = [m for m in MUTANTS if any(word in m.title for word in options.only)]
    if not chosen:
        raise SystemExit(f"no mutant's title holds any of {options.only}")
    problems = [problem for mutant in chosen if (problem := mutant.problem(REPOSITORY))]
    if problems:
        raise SystemExit("\n".join(problems))
    _warm_up()
    begin = time.monotonic()
    survivors = check(chosen, max(1, min(options.jobs, len(chosen))))
    caught = len(chosen) - len(survivors)
    print(
        f"\n{caught} of {len(chosen)} mutants caught ({100 * caught / len(chosen):.0f} %) "
        f"in {time.monotonic() - begin:.0f} s"
    )
    for mutant in survivors:
        print(f"survived: {mutant.title}")
    sys.exit(caught < LEAST_CAUGHT * len(chosen))


if __name__ == "__main__":
    main()
