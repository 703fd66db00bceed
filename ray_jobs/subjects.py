"""The models that `causal evaluate` is asked for, found, checked and made ready to load.

    RUN_DIR               the best checkpoint of a run, beside the base that it was trained on
    model:DIR or :HUB     a whole model
    adapter:DIR or :HUB   a PEFT adapter, in the base that it names

Each brings its own base and so its own tokenizer; test sets and resources are the evaluation's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from causal_core.checkpoints.adapter import adapter_directory, names_same_base, read_adapter
from causal_core.config import Config
from causal_core.config_file import parse_config, read_tree, recorded_config
from causal_core.errors import ForeignCheckpointError, UserError
from causal_core.evaluation.metrics import TRAINED
from causal_core.evaluation.subject import Subject
from causal_core.files import BEST
from causal_core.pretrained.loading import check_weights, resolve_model
from causal_core.visible_text import quoted, shown
from ray_jobs.evaluate import DESCRIPTIONS, check_checkpoints, has_trained_head

BASE = "base"
MODEL, ADAPTER = "model:", "adapter:"  # before a place, in --against
_SET_ON_ALL = ("evaluation.", "resources.", "ray.", "data.max_length", "data.overlong",
               "data.cache_dir")  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """What `causal evaluate` was asked for, as it was written."""

    run: Path | None = None
    model: str | None = None
    adapter: str | None = None
    against: dict[str, str] = field(default_factory=dict)
    tests: dict[str, list[str]] = field(default_factory=dict)  # paths by name; none: the run's own
    benchmarks: dict[str, str] = field(default_factory=dict)  # whose files those of a test are
    settings: Sequence[str] = ()  # key.sub=value
    any_base: bool = False
    trust_remote_code: bool = False


def evaluation_config(asked: Asked, also: Sequence[str] = ()) -> Config:
    """The config that all models share but for the model itself: the run's, or one of its own.

    Args:
        also: Settings that the command has beside those of every evaluation.

    Raises:
        UserError: nothing to evaluate, too much, no test set, or a setting that is none of this
            command.
    """
    if asked.run is not None and (asked.model is not None or asked.adapter is not None):
        raise UserError(
            "a run is evaluated with its own model: name another beside it, as in "
            "--against other=model:DIR or --against other=adapter:DIR"
        )
    if asked.run is None and asked.model is None and asked.adapter is None:
        raise UserError(
            "nothing to evaluate: give a run directory, --model DIR or --adapter DIR (or a hub id)"
        )
    for item in asked.settings:
        key = item.partition("=")[0].strip()
        own_model = key.startswith("model.") and asked.run is None
        if key == "model.trust_remote_code":
            raise UserError(f"--set {shown(key)}: say --trust-remote-code, after reading that code")
        known = own_model or key in also or key.startswith(_SET_ON_ALL)
        if key == "model.name_or_path" or not known:
            raise UserError(
                f"--set {quoted(item)}: this has settings in {', '.join((*_SET_ON_ALL, *also))} "
                "and, without a run, model. (quantization, dtype, revision, chat_template_args)"
            )
    if asked.run is not None:
        config = recorded_config(asked.run, asked.trust_remote_code, asked.settings)
    else:
        tree = read_tree(None, asked.settings)
        tree.setdefault("model", {}).update(
            name_or_path=asked.model or _named_base(asked.adapter or ""),
            # A name that a file gives is not one that the user trusts.
            trust_remote_code=asked.trust_remote_code and asked.model is not None,
        )
        config = parse_config(tree)
    if asked.tests:
        tree = config.model_dump(mode="json")
        tree["data"]["test"] = asked.tests
        config = parse_config(tree)
    if not config.data.test:
        raise UserError("no test set: name one, as in --test novel=FILE")
    return config.with_absolute_paths()


def subjects_asked_for(asked: Asked, config: Config) -> list[Subject]:
    """The models in the order of tables: base, others, what was trained.

    Raises:
        UserError: one cannot be had, is damaged, or does not fit the base that was given for it.
    """
    check_weights(config.model, config.data.cache_dir)
    what = DESCRIPTIONS[BASE] if asked.run or asked.adapter else "the model alone"
    base = Subject(BASE, config, description=f"{what}: {config.model.name_or_path}")
    others = [_other(name, place, asked, config) for name, place in asked.against.items()]
    trained = []
    if asked.run is not None:
        trained = [run_subject(asked.run, config)]
    elif asked.adapter is not None:
        trained = [_adapter(TRAINED, asked.adapter, config, asked.any_base, other_base=False)]
    return [base, *others, *trained]


def run_subject(directory: Path, config: Config) -> Subject:
    """The best checkpoint of a run, by the run's own config (`UserError` where there is none)."""
    return _run(TRAINED, directory, config, DESCRIPTIONS[TRAINED])


def _other(name: str, place: str, asked: Asked, config: Config) -> Subject:
    if place.startswith(MODEL):
        own = _with_model(config, place.removeprefix(MODEL), asked.trust_remote_code)
        check_weights(own.model, own.data.cache_dir)
        return Subject(name, own, description=f"the model {own.model.name_or_path}")
    if place.startswith(ADAPTER):
        given = place.removeprefix(ADAPTER)
        return _adapter(name, given, config, asked.any_base, other_base=True)
    directory = Path(place).expanduser().resolve()
    if not directory.is_dir():
        raise UserError(
            f"--against {shown(name)}={shown(place)}: no such run directory (a model or an adapter "
            f"is given as {MODEL}PLACE or {ADAPTER}PLACE)"
        )
    theirs = recorded_config(directory, asked.trust_remote_code)
    tree = config.model_dump(mode="json")
    tree.update(model=theirs.model.model_dump(), lora=theirs.lora.model_dump())
    description = DESCRIPTIONS.get(name, f"the run {directory}")
    return _run(name, directory, parse_config(tree), description)


def _run(name: str, directory: Path, config: Config, description: str) -> Subject:
    checkpoint = directory / BEST
    check_checkpoints({name: checkpoint})
    trained = has_trained_head(config, name, checkpoint)
    return Subject(
        name, config, checkpoint=checkpoint, head_trained=trained, description=description
    )


def _adapter(name: str, place: str, config: Config, any_base: bool, other_base: bool) -> Subject:
    """An adapter in the evaluation's base, or, where it may, in the other one that it names."""
    adapter = read_adapter(adapter_directory(place))
    own = config.model.name_or_path
    resolved = resolve_model(config.model, config.data.cache_dir)
    if not any_base and not names_same_base(adapter.base, own, resolved):
        assert adapter.base is not None
        if not other_base:
            raise ForeignCheckpointError(
                f"the adapter {shown(place)} was trained on {quoted(adapter.base)}, and --model is "
                f"{shown(own)}: leave --model out, or, if that is the same model under another "
                "name, add --any-base"
            )
        config = _with_model(config, adapter.base, trusted=False)  # a file's word, not the user's
        check_weights(config.model, config.data.cache_dir)
    named = adapter.base or "no base in particular"
    description = f"the adapter {place}, made for {named}, in {config.model.name_or_path}"
    return Subject(name, config, adapter=adapter.directory, description=description)


def _with_model(config: Config, place: str, trusted: bool) -> Config:
    """The config with another model; what is said of the first one's revision is not its own."""
    keep = config.model.model_dump(include={"quantization", "dtype"})
    tree: dict[str, Any] = config.model_dump(mode="json")
    tree["model"] = {**keep, "name_or_path": place, "trust_remote_code": trusted}
    return parse_config(tree).with_absolute_paths()


def _named_base(adapter: str) -> str:
    named = read_adapter(adapter_directory(adapter)).base
    if named is None:
        raise UserError(f"the adapter {shown(adapter)} does not say which base it is for: --model")
    return named
