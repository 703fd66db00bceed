"""Configs from YAML files and `key.sub=value` overrides: plain values, validated as a whole.

Nothing is guessed: an unknown key is an error that names the nearest known one.
"""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, RootModel, ValidationError

from causal_core import config_names
from causal_core.config import Config
from causal_core.errors import ConfigError
from causal_core.files import CONFIG
from causal_core.visible_text import quoted, shown, visible
from causal_core.yaml_file import MAX_BYTES, parse_yaml, read_yaml

AnySection = TypeVar("AnySection", bound=BaseModel)

# YAML 1.1 reads 2e-4 as a string (it wants 2.0e-4); people write learning rates that way.
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")

# Nothing in a config is as deep; what is would only be followed down to say so.
_DEEPEST = 16
_PROBLEMS_TOLD = 20
_LONGEST_KEY = 100

_TRUST = "trust_remote_code"


def load_config(path: str | Path | None, overrides: Iterable[str] = ()) -> Config:
    """Reads a YAML file, applies `key.sub=value` overrides, validates.

    Args:
        path: YAML file, or None for the defaults.
        overrides: Values are parsed as YAML (`train.epochs=1`, `lora.target_modules=[q_proj]`).

    Raises:
        ConfigError: names every bad key or value, what was found and what is possible.
    """
    tree = read_tree(path, overrides)
    if "tune" in tree:
        raise ConfigError(
            f"{source_of(path)} describes a sweep (its section `tune`): run it with `causal tune`, "
            "which writes the best run's config to best.yaml"
        )
    return parse_config(tree, source_of(path))


def recorded_config(
    directory: Path, trust_remote_code: bool, settings: Iterable[str] = ()
) -> Config:
    """The config in a run's or a checkpoint's directory, which may be another's: it says what was
    trained, not what code may run here (a Ray cluster can run any in whoever connects to it), nor
    where to write.

    Args:
        settings: Overrides of whoever runs the command.
    """
    trust = f"model.{_TRUST}={str(trust_remote_code).lower()}"
    foreign = [trust, "ray.address=null", "data.cache_dir=null"]
    if not (directory / CONFIG).exists():
        raise ConfigError(
            f"{shown(str(directory))} has no {CONFIG}, so there is no run in it: give the "
            "directory of a run (causal train)"
        )
    recorded = load_config(directory / CONFIG, foreign)
    given = list(settings)
    if not given:
        return recorded
    # Told apart: what is wrong now is of the command, not of the file.
    tree = read_tree(directory / CONFIG, [*foreign, *given])
    return parse_config(tree, f"{source_of(directory / CONFIG)} with {', '.join(given)}")


def read_tree(path: str | Path | None, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """A YAML file with overrides as a tree of plain values, not validated (`ConfigError`)."""
    tree: dict[str, Any] = {}
    if path is not None:
        loaded = read_yaml(path)
        if loaded is not None and not isinstance(loaded, dict):
            raise ConfigError(
                f"{source_of(path)}: the top level must be sections such as `model:`, "
                f"found {type(loaded).__name__}"
            )
        tree = loaded or {}
    trusting = _without_trust(tree)
    items = list(overrides)
    try:
        config_names.refuse_both(item.partition("=")[0].strip() for item in items)
    except ValueError as error:
        raise ConfigError(f"overrides: {error}") from None
    if any(item.startswith("loss.preset=") for item in items) and isinstance(
        tree.get("loss"), dict
    ):
        # The later statement wins: a preset given as override replaces the file's weights.
        tree["loss"] = {k: v for k, v in tree["loss"].items() if not k.startswith("lambda_")}
    for item in items:
        apply_override(tree, item)
    model = tree.get("model")
    if trusting and not (isinstance(model, dict) and _TRUST in model):
        raise ConfigError(
            f"{source_of(path)} asks to run Python code that ships with the model "
            f"(model.{_TRUST}). That is never taken from a file: once you have read that code, say "
            f"model.{_TRUST}=true on the command line, or take it out of the file"
        )
    return tree


def _without_trust(tree: dict[str, Any]) -> bool:
    """Takes a file's own word that its model's code may run out of its tree; whether it was given.

    Files come from others, with runs and with models; trust comes from who runs the command.
    """
    model = tree.get("model")
    return isinstance(model, dict) and model.pop(_TRUST, False) is not False


def source_of(path: str | Path | None) -> str:
    """How errors name where a config comes from."""
    return "the defaults" if path is None else shown(str(path))


def parse_config(tree: Mapping[str, Any], source: str = "config") -> Config:
    """Validates a tree of plain values; `source` names it in errors (`ConfigError`)."""
    return parse_section(Config, tree, source)


def parse_section(section: type[AnySection], tree: Any, source: str, at: str = "") -> AnySection:
    """Validates a tree as any typed section.

    Args:
        source: Names the tree in errors.
        at: The path of the section within it, which errors begin their paths with.

    Raises:
        ConfigError: names every bad key or value; an unknown key with the nearest known one.
    """
    try:
        return section.model_validate(tree)
    except ValidationError as error:
        found = error.errors(include_url=False)
        lines = [_explain(problem, section, at) for problem in found[:_PROBLEMS_TOLD]]
        if len(found) > _PROBLEMS_TOLD:
            lines.append(f"  ... {len(found):,} problems in all")
        # Not chained: pydantic's own message repeats the values that were found, passwords too.
        raise ConfigError(f"{source} is not a valid config:\n" + "\n".join(lines)) from None


def apply_override(tree: dict[str, Any], item: str) -> None:
    """Sets one `key.sub=value` in a tree of plain values (`ConfigError` where it is none)."""
    key, separator, text = item.partition("=")
    key = key.strip()
    *parents, leaf = key.split(".")
    if not separator or not all([*parents, leaf]) or len(parents) > _DEEPEST:
        raise ConfigError(f"override {quoted(item)}: expected key.sub=value, e.g. train.epochs=1")
    if len(text) > MAX_BYTES:
        raise ConfigError(f"override {quoted(key)}: its value has {len(text):,} characters")
    value = parse_yaml(text, f"override {quoted(key)}")
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value)
    node = tree
    for depth, part in enumerate(parents):
        child = node.setdefault(part, {})
        if not isinstance(child, dict):
            at = shown(".".join(parents[: depth + 1]))
            raise ConfigError(f"override {quoted(key)}: `{at}` is a value, not a section")
        node = child
    name, value = config_names.current(key, value)
    for old, new in config_names.KEYS.items():
        if name == new:  # the later statement wins, whatever it calls the key
            node.pop(old.rpartition(".")[2], None)
            leaf = new.rpartition(".")[2]
    node[leaf] = value


def _explain(problem: Any, section: type[BaseModel], at: str) -> str:
    location = [str(part)[:_LONGEST_KEY] for part in problem["loc"]]
    path = shown(".".join(part for part in (at, *location) if part) or "config")
    found = problem.get("input")
    if problem["type"] == "extra_forbidden":
        known = _known_keys(section, problem["loc"][:-1])
        near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"; did you mean `{near[0]}`?" if near else f"; known keys: {', '.join(known)}"
        return f"  {path}: unknown key{hint}"
    if problem["type"] == "union_tag_invalid":  # pydantic's own words hold what was found
        said = problem["ctx"]
        kind = said["discriminator"].strip("'")
        return f"  {path}.{kind}: found {quoted(said['tag'])}, expected {said['expected_tags']}"
    message = visible(problem["msg"].removeprefix("Value error, "))
    if isinstance(found, Mapping | BaseModel):
        return f"  {path}: {message}"
    return f"  {path}: {message}; found {quoted(found)}"


def _known_keys(section: type[BaseModel], location: Iterable[int | str]) -> list[str]:
    """Keys of the model at a location of an error, which goes through fields, keys of mappings and
    tags of unions."""
    models = [section]
    for part in location:
        inner = [model for outer in models for model in _models_below(outer, str(part))]
        models = inner or [model for model in models if _has_tag(model, str(part))]
    return [name for model in models for name in model.model_fields]


def _models_below(model: type[BaseModel], part: str) -> list[type[BaseModel]]:
    field = model.model_fields.get("root" if issubclass(model, RootModel) else part)
    return [] if field is None else _models_in(field.annotation)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in typing.get_args(annotation) for model in _models_in(inner)]


def _has_tag(model: type[BaseModel], tag: str) -> bool:
    fields = model.model_fields.values()
    return any(tag in typing.get_args(field.annotation) for field in fields)
