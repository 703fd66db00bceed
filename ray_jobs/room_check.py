"""`causal data check --config` and `--model`: whether rows have room in a run, by its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from causal_core.errors import UserError

if TYPE_CHECKING:  # heavy imports wait until a command runs, so that --help is quick
    import pyarrow as pa

    from causal_core.config import Config
    from causal_core.tokens.room import Room

ForConfig = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="CONFIG",
        help="A run's config: its tokenizer, data.max_length and data.columns.",
    ),
]
ForModel = Annotated[
    str | None,
    typer.Option("--model", metavar="PLACE", help="A model whose tokenizer counts: no config."),
]
MaxLength = Annotated[
    int | None, typer.Option(min=1, help="Tokens of a prompt with its answer, for the config's.")
]


def config_for(config: Path | None, model: str | None, max_length: int | None) -> Config | None:
    """The config that rows are to have room in; None where none was asked for (`UserError`)."""
    from causal_core.config_file import load_config, parse_config, read_tree

    if config is not None and model is not None:
        raise UserError("--config names a model already: leave --model out")
    settings = [] if max_length is None else [f"data.max_length={max_length}"]
    if config is not None:
        return load_config(config, settings)
    if model is not None:
        tree = read_tree(None, settings)
        tree.setdefault("model", {})["name_or_path"] = model
        return parse_config(tree)
    if max_length is not None:
        raise UserError("--max-length counts tokens: say whose, with --model or --config")
    return None


def rooms(splits: Mapping[str, pa.Table], config: Config) -> dict[str, Room]:
    """What each split takes."""
    from causal_core.tokens.room import room_of
    from causal_core.tokens.run_data import load_encoder
    from ray_jobs.console.quiet import quiet_libraries

    quiet_libraries()
    encoder = load_encoder(config)
    return {name: room_of(table, encoder, config.data.max_length) for name, table in splits.items()}


def told_of(split: str, room: Room) -> str:
    """One line, untrusted ids in it."""
    if not room.too_long:
        return (
            f"tokens: {split}: all {room.rows:,} rows fit: the longest has {room.longest:,} of "
            f"data.max_length={room.limit:,}"
        )
    branches = ", ".join(f"{count:,} {name}" for name, count in room.branches.items())
    return (
        f"tokens: {split}: {room.too_long:,} of {room.rows:,} rows do not fit "
        f"data.max_length={room.limit:,} (the longest has {room.longest:,}): {branches}; such as "
        f"{', '.join(room.examples)}. Training stops at them: data.max_length={room.longest} takes "
        "all, data.overlong=drop leaves them out"
    )


def as_json(found: Mapping[str, Room]) -> dict[str, Any]:
    """Plain values by split."""
    return {name: vars(room) for name, room in found.items()}
