"""The config of a sweep: a run's YAML file with a section `tune` beside the run's own.

The run's sections are the fixed part; `tune` says what varies, what is aimed at and what it may
cost. Overrides reach both (`tune.trials=20 train.epochs=1`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from causal_core import config_names
from causal_core.amounts import parse_bytes
from causal_core.config import Config, Section
from causal_core.config_file import parse_config, parse_section, read_tree, source_of
from causal_core.config_sections import MOST, MOST_SEED, MOST_WEIGHT
from causal_core.errors import ConfigError
from tune_spaces.objectives import OBJECTIVES, ObjectiveName
from tune_spaces.space import SearchSpace

_NEED_WITNESS = ("attack_success", "uplift")


class Bound(Section):
    """What a figure must be for a trial to count."""

    at_most: float | None = None
    at_least: float | None = None

    @model_validator(mode="after")
    def _bounds_something(self) -> Bound:
        if self.at_most is None and self.at_least is None:
            raise ValueError("give at_most, at_least or both")
        return self

    def violation(self, value: float) -> float:
        """How far beyond the bounds a value is; 0 within them."""
        above = 0.0 if self.at_most is None else value - self.at_most
        below = 0.0 if self.at_least is None else self.at_least - value
        return max(0.0, above, below)


class AshaSection(Section):
    """Asynchronous successive halving (Li et al., 2020): stops trials that fall behind."""

    enabled: bool | None = Field(None, description="Default: with one objective that has a cheap "
                                 "metric inside a run.")  # fmt: skip
    factor: float = Field(
        3.0, gt=1, le=1000, description="One in this many trials goes on at each rung."
    )
    first_steps: int | None = Field(
        None,
        ge=1,
        le=MOST,
        description="Steps before a trial may be stopped; default: a checkpoint.",
    )


class TuneSection(Section):
    """The section `tune`."""

    space: SearchSpace = Field(description="What varies, by dotted path of the run's config.")
    trials: int = Field(
        20, ge=1, le=10**6, description="Trials to train; refused ones do not count."
    )
    searcher: Literal["optuna", "random", "grid"] = Field(
        "optuna", description="optuna: TPE, for one objective or several, with constraints."
    )
    seed: int = Field(
        0, ge=0, le=MOST_SEED, description="Of the search; the trials' own is run.seed."
    )
    objectives: list[ObjectiveName] = Field(
        ["uplift"], min_length=1, description="Several give a Pareto front; the first one ranks it."
    )
    constraints: dict[ObjectiveName, Bound] = Field(default_factory=dict)
    benign_tolerance: float = Field(
        0.25,
        ge=0,
        le=MOST_WEIGHT,
        description="Relative: how far the best trial's benign NLL may be above the lowest; "
        "a constraint on benign_nll or benign_exact takes its place.",
    )
    gpu_memory: str | dict[str, str] | None = Field(
        None,
        description="What a worker may need of its device, e.g. 24GiB (without a GPU: of memory), "
        "or by Ray's accelerator type: {A10G: 22GiB, A100-80G: 79GiB}. Points that do not fit any "
        "are refused; default: resources.gpu_memory.",
    )
    asha: AshaSection = Field(default_factory=AshaSection)
    max_concurrent: int | None = Field(
        None,
        ge=1,
        le=MOST,
        description="Trials at a time; default: as many as the cluster can hold.",
    )

    @field_validator("gpu_memory")
    @classmethod
    def _is_an_amount(cls, value: str | dict[str, str] | None) -> str | dict[str, str] | None:
        if value == {}:
            raise ValueError("names no accelerator type: give an amount, or leave it out")
        for amount in value.values() if isinstance(value, dict) else [value]:
            if amount is not None:
                parse_bytes(amount)
        return value

    @model_validator(mode="after")
    def _goes_together(self) -> TuneSection:
        if not self.space.root:
            raise ValueError("space is empty: name at least one dimension")
        if len(set(self.objectives)) < len(self.objectives):
            raise ValueError(f"objectives={self.objectives} names one twice")
        if self.asha.enabled:
            if len(self.objectives) > 1:
                raise ValueError(
                    "asha compares trials by one objective while they run, found "
                    f"{len(self.objectives)}: leave one, or set asha.enabled=false"
                )
            if OBJECTIVES[self.objectives[0]].in_run is None:
                raise ValueError(
                    f"asha needs a metric that goes with the objective while a trial runs, "
                    f"{self.objectives[0]} has none: set asha.enabled=false"
                )
        return self

    def in_run_metric(self) -> str | None:
        """The validation metric that ASHA stops by; None: nothing is stopped."""
        if self.asha.enabled is False or len(self.objectives) > 1:
            return None
        return OBJECTIVES[self.objectives[0]].in_run


@dataclass(frozen=True)
class SweepConfig:
    """A run to vary and how."""

    run: Config
    tune: TuneSection

    @property
    def directory(self) -> Path:
        """The sweep's directory (`run.dir`), absolute."""
        return Path(self.run.run.dir).expanduser().resolve()

    @property
    def budgets(self) -> dict[str | None, int]:
        """What a worker may need of its device, by accelerator type (None: any), smallest first;
        empty where there is no budget."""
        given = self.tune.gpu_memory
        if isinstance(given, dict):
            amounts = {name: parse_bytes(amount) for name, amount in given.items()}
            return dict(sorted(amounts.items(), key=lambda item: (item[1], item[0])))
        budget = self.run.resources.gpu_memory_bytes if given is None else parse_bytes(given)
        return {} if budget is None else {self.run.resources.accelerator_type: budget}

    @property
    def budget_bytes(self) -> int | None:
        """The largest budget: beyond it nothing runs."""
        return max(self.budgets.values(), default=None)

    def identity(self) -> dict[str, Any]:
        """What may not change while a sweep continues: by dotted path."""
        tune = self.tune.model_dump(mode="json", exclude={"trials", "max_concurrent"})
        return {
            **config_names.first(self.run.result_fields()),
            **{f"data.{key}": value for key, value in self.run.data.model_dump().items()},
            **{f"tune.{key}": value for key, value in tune.items()},
        }

    def fingerprint(self) -> str:
        """sha256 over `identity`."""
        text = json.dumps(self.identity(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def to_yaml(self) -> str:
        """The resolved file."""
        tree = {
            **self.run.model_dump(mode="json"),
            "tune": self.tune.model_dump(mode="json", exclude_defaults=True),
        }
        return yaml.safe_dump(tree, sort_keys=False)


def load_sweep(path: str | Path, overrides: Iterable[str] = ()) -> SweepConfig:
    """Reads and validates a sweep's file, and tries the corners of its space.

    Raises:
        ConfigError: what is wrong, where, and what is possible.
    """
    tree, source = read_tree(path, overrides), source_of(path)
    section = tree.pop("tune", None)
    if section is None:
        raise ConfigError(
            f"{source} has no section `tune`: say what varies, as configs/tune-cpu.yaml does"
        )
    run = parse_config(tree, source)
    tune = parse_section(TuneSection, section, source, "tune")
    tune.space.check_against(run)
    _check(run, tune, source)
    return SweepConfig(run.with_absolute_paths(), tune)


def _check(run: Config, tune: TuneSection, source: str) -> None:
    if run.resources.max_workers == 0:
        raise ConfigError(
            f"{source}: resources.workers=0 trains without Ray, and a sweep's trials are Ray "
            "trials: set resources.workers=1"
        )
    if not run.data.validation:
        raise ConfigError(
            f"{source}: data.validation is empty, and trials are judged by it (the test sets stay "
            "unseen until the sweep is over)"
        )
    fixed = {"run.dir", "run.seed", "resources.workers", "data.train", "data.validation"}
    for path in tune.space.root:
        if path in fixed or path.startswith(("ray.", "logging.")):
            raise ConfigError(
                f"{source}: tune.space varies {path}, which must be the same in all trials: they "
                "would not be comparable"
            )
        if path == "train.micro_batch_tokens" and (tune.gpu_memory or run.resources.gpu_memory):
            raise ConfigError(
                f"{source}: tune.space varies {path}, which the memory budget decides (the largest "
                "that fits; the result does not depend on it): leave it out of the space"
            )
    if isinstance(tune.gpu_memory, dict) and run.resources.accelerator_type is not None:
        raise ConfigError(
            f"{source}: tune.gpu_memory has a budget for each of {', '.join(tune.gpu_memory)}, and "
            f"resources.accelerator_type={run.resources.accelerator_type} allows only one: leave "
            "one of the two out"
        )
    if tune.searcher == "grid":
        next(tune.space.grid())
