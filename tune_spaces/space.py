"""The search space as typed config: what may vary, by dotted path of the run's config.

    loss.lambda_robust:  {kind: log_uniform, low: 0.1, high: 10, zero: 0.2}
    lora.rank:           {kind: choice, values: [8, 16, 32]}

A point of the space is a list of `key=value` overrides; every point is a valid config, which is
checked when the space is read and not in the middle of a sweep.
"""

from __future__ import annotations

import json
import math
import random
from typing import Annotated, Any, Literal

from pydantic import Field, RootModel, model_validator

from causal_core.config import Config, Section, parse_config
from causal_core.errors import ConfigError


class Choice(Section):
    """One of the values, all equally likely."""

    kind: Literal["choice"]
    values: list[Any] = Field(min_length=1)

    def draw(self, rng: random.Random) -> Any:
        return rng.choice(self.values)

    def corners(self) -> list[Any]:
        return list(self.values)


class Uniform(Section):
    """A number between low and high."""

    kind: Literal["uniform"]
    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> Uniform:
        if not self.low < self.high:
            raise ValueError(f"low={self.low} must be below high={self.high}")
        return self

    def draw(self, rng: random.Random) -> float:
        return rng.uniform(self.low, self.high)

    def corners(self) -> list[Any]:
        return [self.low, self.high]


class LogUniform(Section):
    """A positive number whose logarithm is uniform; 0 with probability `zero`."""

    kind: Literal["log_uniform"]
    low: float = Field(gt=0)
    high: float = Field(gt=0)
    zero: float = Field(0.0, ge=0, lt=1, description="Probability of exactly 0: the term is off.")

    @model_validator(mode="after")
    def _ordered(self) -> LogUniform:
        if not self.low < self.high:
            raise ValueError(f"low={self.low} must be below high={self.high}")
        return self

    def draw(self, rng: random.Random) -> float:
        if rng.random() < self.zero:
            return 0.0
        return math.exp(rng.uniform(math.log(self.low), math.log(self.high)))

    def corners(self) -> list[Any]:
        return [self.low, self.high, *([0.0] if self.zero else [])]


Dimension = Annotated[Choice | Uniform | LogUniform, Field(discriminator="kind")]


class SearchSpace(RootModel[dict[str, Dimension]]):
    """Dimensions by dotted config path."""

    def overrides(self, seed: int, trial: int) -> list[str]:
        """Point number `trial` of a random search: config overrides, fixed by (seed, trial)."""
        rng = random.Random(f"{seed}/{trial}")
        return [f"{path}={json.dumps(d.draw(rng))}" for path, d in self.root.items()]

    def check_against(self, config: Config) -> None:
        """Tries each dimension's extreme values in the config.

        Raises:
            ConfigError: names the path that does not exist or the value that cannot be.
        """
        for path, dimension in self.root.items():
            section, _, field = path.partition(".")
            for value in dimension.corners():
                tree = config.model_dump(mode="json")
                if not field or not isinstance(tree.get(section), dict):
                    raise ConfigError(f"search space: {path!r} is not a section.field of a config")
                tree[section][field] = value
                parse_config(tree, f"search space: {path}={value!r}")
