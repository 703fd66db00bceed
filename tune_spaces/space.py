"""The search space as typed config: what may vary, by dotted path of the run's config.

    loss.lambda_robust:  {kind: log_uniform, low: 0.1, high: 10, zero: 0.2}
    lora.rank:           {kind: choice, values: [8, 16, 32]}
    lora.alpha_ratio:    {kind: choice, values: [1, 2]}
    loss.margin:         {kind: uniform, low: 0.1, high: 1, when: {loss.contrastive: triplet}}

A point of the space is a value by path; it becomes a list of `key=value` overrides. The space's
corners are tried as configs when it is read, and not in the middle of a sweep.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, RootModel, model_validator

from causal_core.config import Config, Section
from causal_core.config_file import apply_override, parse_config
from causal_core.errors import ConfigError
from causal_core.visible_text import quoted, shown

# No field of a config: the adapter's scale alpha / rank, which is what a rank should be compared
# at. It sets `lora.alpha`.
ALPHA_RATIO = "lora.alpha_ratio"

_LONGEST_SOURCE = 500  # characters of a point that an error names

Point = dict[str, Any]  # a value by path; paths whose condition does not hold are absent


class _Dimension(Section):
    when: dict[str, Any] = Field(
        default_factory=dict,
        description="Vary only where these other choices of the space have these values.",
    )


class Choice(_Dimension):
    """One of the values, all equally likely."""

    kind: Literal["choice"]
    values: list[Any] = Field(min_length=1)

    def draw(self, rng: random.Random) -> Any:
        return rng.choice(self.values)

    def corners(self) -> list[Any]:
        return list(self.values)


class Uniform(_Dimension):
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


class LogUniform(_Dimension):
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

    @model_validator(mode="after")
    def _conditions_name_choices(self) -> SearchSpace:
        if ALPHA_RATIO in self.root and "lora.alpha" in self.root:
            raise ValueError(f"{ALPHA_RATIO} sets lora.alpha: vary one of the two")
        for path, dimension in self.root.items():
            for other, value in dimension.when.items():
                chosen = self.root.get(other)
                if not isinstance(chosen, Choice) or chosen.when:
                    raise ValueError(
                        f"{path}: `when` names {other!r}, which is no unconditional choice of this "
                        "space"
                    )
                if value not in chosen.values:
                    raise ValueError(
                        f"{path}: {other} is never {value!r}, its values are {chosen.values}"
                    )
        return self

    def ordered(self) -> list[tuple[str, Dimension]]:
        """Dimensions so that those which a condition names come before those that have it."""
        return sorted(self.root.items(), key=lambda item: bool(item[1].when))

    def point(self, seed: int, trial: int) -> Point:
        """Point number `trial` of a random search, fixed by (seed, trial)."""
        rng = random.Random(f"{seed}/{trial}")
        drawn: Point = {}
        for path, dimension in self.ordered():
            value = dimension.draw(rng)  # drawn in any case, so that the others do not depend on it
            if holds(dimension.when, drawn):
                drawn[path] = value
        return drawn

    def grid(self) -> Iterator[Point]:
        """All points of a space of choices, in the order of the file.

        Raises:
            ConfigError: a dimension is continuous.
        """
        for path, dimension in self.root.items():
            if not isinstance(dimension, Choice):
                raise ConfigError(
                    f"tune.searcher=grid needs a choice in every dimension, {path} is "
                    f"{dimension.kind}: list its values, or take searcher random or optuna"
                )
        paths = [path for path, _ in self.ordered()]
        seen: set[str] = set()
        for values in itertools.product(*(self.root[path].corners() for path in paths)):
            point: Point = {}
            for path, value in zip(paths, values, strict=True):
                if holds(self.root[path].when, point):
                    point[path] = value
            key = json.dumps(point, sort_keys=True)
            if key not in seen:  # conditions make points that differ nowhere
                seen.add(key)
                yield point

    def apply(self, config: Config, point: Point) -> Config:
        """The run's config at a point (`ConfigError` where the values do not go together)."""
        tree = config.model_dump(mode="json")
        source = f"search space: {shown(describe(point)[:_LONGEST_SOURCE])}"
        for path, value in point.items():
            apply_override(tree, f"{path}={json.dumps(value)}")
        if ALPHA_RATIO not in point:
            return parse_config(tree, source)
        ratio = tree["lora"].pop(ALPHA_RATIO.rpartition(".")[2])
        if isinstance(ratio, bool) or not isinstance(ratio, int | float):
            raise ConfigError(f"{source}: {ALPHA_RATIO} is a number, found {quoted(ratio)}")
        tree["lora"]["alpha"] = ratio * parse_config(tree, source).lora.rank
        return parse_config(tree, source)

    def check_against(self, config: Config) -> None:
        """Tries each dimension's extreme values in the config.

        Raises:
            ConfigError: names the path that does not exist or the value that cannot be.
        """
        tree = config.model_dump(mode="json")
        for path, dimension in self.root.items():
            section, _, field = path.partition(".")
            if not field or not isinstance(tree.get(section), dict):
                raise ConfigError(f"search space: {path!r} is not a section.field of a config")
            for value in dimension.corners():
                self.apply(config, {**dimension.when, path: value})


def holds(condition: Mapping[str, Any], point: Point) -> bool:
    """Whether a dimension with this `when` varies at a point."""
    return all(path in point and point[path] == value for path, value in condition.items())


def describe(point: Point) -> str:
    """`lora.rank=8 loss.lambda_robust=0.31`."""
    return " ".join(f"{path}={show(value)}" for path, value in point.items())


def short_titles(paths: Sequence[str]) -> list[str]:
    """Headings of dimensions: `learning rate`, or the whole path where that would not be unique."""
    short = [path.rpartition(".")[2].removeprefix("lambda_") for path in paths]
    unique = [s if short.count(s) == 1 else path for s, path in zip(short, paths, strict=True)]
    return [title.replace("_", " ") for title in unique]


def show(value: Any) -> str:
    """A value as people read it."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return value if isinstance(value, str) else json.dumps(value)
