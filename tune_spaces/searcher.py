"""What to try next. A searcher has no state: the same history gives the same suggestion.

So nothing is lost with the process, and a sweep that was interrupted goes on as it would have.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from tune_spaces.config import SweepConfig
from tune_spaces.ledger import Trial, violations
from tune_spaces.objectives import OBJECTIVES, values_of
from tune_spaces.space import Choice, Dimension, LogUniform, Point, SearchSpace, Uniform, holds

_ZERO = "|zero"  # Optuna's name for the draw that decides whether a term is off


class Searcher(Protocol):
    """Suggests points of a space."""

    def suggest(self, number: int, history: Sequence[Trial]) -> Point | None:
        """Point `number`, given all trials before it; None: there is nothing left to try."""


class RandomSearcher:
    """Independent draws."""

    def __init__(self, space: SearchSpace, seed: int) -> None:
        self._space, self._seed = space, seed

    def suggest(self, number: int, history: Sequence[Trial]) -> Point | None:
        return self._space.point(self._seed, number)


class GridSearcher:
    """Every point of a space of choices."""

    def __init__(self, space: SearchSpace) -> None:
        self._space = space

    def suggest(self, number: int, history: Sequence[Trial]) -> Point | None:
        return next(itertools.islice(self._space.grid(), number, None), None)


class OptunaSearcher:
    """Tree-structured Parzen estimators (Bergstra et al., 2011) by Optuna, multi-objective and
    with constraints.

    Optuna learns from finished trials by their objectives, from stopped ones by the metric they
    were stopped on, and that refused ones and those that break a constraint are infeasible and by
    how much. A failed trial teaches nothing.
    """

    def __init__(self, sweep: SweepConfig) -> None:
        self._sweep, self._space = sweep, sweep.tune.space

    def suggest(self, number: int, history: Sequence[Trial]) -> Point | None:
        # Every ask has a seed of its own: a study that is built anew would draw its first numbers
        # again.
        digest = hashlib.sha256(f"{self._sweep.tune.seed}/{number}".encode()).digest()
        with _quiet_optuna():
            asked = study_of(self._sweep, history, int.from_bytes(digest[:4])).ask()
            return self._draw(asked)

    def _draw(self, asked: Any) -> Point:
        point: Point = {}
        for path, dimension in self._space.ordered():
            if not holds(dimension.when, point):
                continue
            if isinstance(dimension, Choice):
                values = _values(dimension)
                if _is_ordered(dimension):
                    chosen = asked.suggest_int(path, 0, len(values) - 1)
                else:
                    chosen = asked.suggest_categorical(path, range(len(values)))
                point[path] = values[chosen]
                continue
            log = isinstance(dimension, LogUniform)
            zero = dimension.zero if isinstance(dimension, LogUniform) else 0.0
            if zero and asked.suggest_float(path + _ZERO, 0, 1) < zero:
                point[path] = 0.0
                continue
            point[path] = asked.suggest_float(path, dimension.low, dimension.high, log=log)
        return point


def study_of(sweep: SweepConfig, history: Sequence[Trial], seed: int) -> Any:
    """An Optuna study in memory that knows a sweep's history."""
    import optuna

    with _quiet_optuna():
        study = optuna.create_study(
            directions=[
                "maximize" if OBJECTIVES[name].maximize else "minimize"
                for name in sweep.tune.objectives
            ],
            sampler=optuna.samplers.TPESampler(
                multivariate=True,
                group=True,
                n_startup_trials=_startup(sweep.tune.trials),
                seed=seed,
            ),
        )
        study.add_trials([_told(sweep, trial) for trial in history])
    return study


def _told(sweep: SweepConfig, trial: Trial) -> Any:
    """A trial of the ledger as Optuna's."""
    from optuna.trial import TrialState, create_trial

    params: dict[str, Any] = {}
    distributions: dict[str, Any] = {}
    for path, dimension in sweep.tune.space.ordered():
        if path in trial.point:
            _embed(path, dimension, trial.point[path], params, distributions)
    values, intermediate, constraints = None, None, None
    state = TrialState.FAIL
    if trial.status == "finished":
        values = values_of(trial.metrics, sweep.tune.objectives)
        state = TrialState.FAIL if values is None else TrialState.COMPLETE
        constraints = violations(trial, sweep)
    elif trial.status == "refused":
        state = TrialState.PRUNED
        over = 1.0  # not a valid config: as bad as twice the budget
        if sweep.budget_bytes and trial.predicted_bytes is not None:
            over = trial.predicted_bytes / sweep.budget_bytes - 1
        constraints = {"memory": max(over, 1e-9)}
    elif trial.status == "stopped":
        state = TrialState.PRUNED
        key = f"validation_{sweep.tune.in_run_metric()}"
        intermediate = {
            int(report["step"]): report[key] for report in trial.reports if key in report
        }
    elif trial.status == "running":
        state = TrialState.RUNNING
    return create_trial(
        state=state,
        values=values,
        params=params,
        distributions=distributions,
        intermediate_values=intermediate,
        constraints=constraints,
    )


@contextlib.contextmanager
def _quiet_optuna() -> Iterator[None]:
    import optuna

    optuna.logging.set_verbosity(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def searcher_of(sweep: SweepConfig) -> Searcher:
    """The searcher that the config asks for."""
    tune = sweep.tune
    if tune.searcher == "grid":
        return GridSearcher(tune.space)
    if tune.searcher == "random":
        return RandomSearcher(tune.space, tune.seed)
    return OptunaSearcher(sweep)


def _startup(trials: int) -> int:
    """Random trials before the model is trusted: Optuna's 10, or fewer in a short sweep."""
    return min(10, max(2, trials // 3))


def _values(dimension: Choice) -> list[Any]:
    """Numbers by size: Optuna sees the place, so that it learns that 32 lies between 16 and 64."""
    return sorted(dimension.values) if _is_ordered(dimension) else dimension.values


def _is_ordered(dimension: Choice) -> bool:
    return len(dimension.values) > 1 and all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in dimension.values
    )


def _embed(
    path: str,
    dimension: Dimension,
    value: Any,
    params: dict[str, Any],
    distributions: dict[str, Any],
) -> None:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if isinstance(dimension, Choice):
        values = _values(dimension)
        params[path] = values.index(value)
        distributions[path] = (
            IntDistribution(0, len(values) - 1)
            if _is_ordered(dimension)
            else CategoricalDistribution(range(len(values)))
        )
        return
    if isinstance(dimension, LogUniform) and dimension.zero:
        # The middle of the part of [0, 1] that stands for this outcome.
        off = value == 0
        params[path + _ZERO] = dimension.zero / 2 if off else (1 + dimension.zero) / 2
        distributions[path + _ZERO] = FloatDistribution(0, 1)
        if off:
            return
    assert isinstance(dimension, Uniform | LogUniform)
    params[path] = min(max(value, dimension.low), dimension.high)
    distributions[path] = FloatDistribution(
        dimension.low, dimension.high, log=isinstance(dimension, LogUniform)
    )
