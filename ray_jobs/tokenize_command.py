"""`causal data tokenize`: the token cache of a data set, before any run needs it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from ray_jobs.console.answer import print_json
from ray_jobs.console.plain import plain
from ray_jobs.data_files import Files, Map, user_errors
from ray_jobs.options import Json, Settings, TrustModel

if TYPE_CHECKING:  # heavy imports wait until a command runs, so that --help is quick
    from causal_core.config import Config

_SETTINGS = ("model.", "data.cache_dir", "ray.")


def tokenize(
    files: Files,
    model: Annotated[
        str, typer.Option(metavar="PLACE", help="Whose tokenizer: a directory, a hub id or demo.")
    ],
    columns: Map = None,
    unanswered: Annotated[
        bool, typer.Option("--unanswered", help="Rows may lack answers, as test sets may.")
    ] = False,
    on_ray: Annotated[
        bool, typer.Option("--ray", help="On all CPUs of a Ray cluster; Parquet files only.")
    ] = False,
    settings: Settings = None,
    trust_remote_code: TrustModel = False,
    as_json: Json = False,
) -> None:
    """Tokenise data ahead of training, into the cache that training reads.

    A run on the same files with the same model starts at once. Rows are kept in shards of 4,096:
    an interrupted command goes on with the shard where it stopped. With --ray the shards of
    Parquet files are made by a Ray Data job (--set ray.address=..., else on this machine), and the
    cache is the same, byte for byte.

    Example: causal data tokenize train.parquet --model demo --ray
    """
    from rich.console import Console

    from causal_core.data.column_paths import ColumnPaths
    from causal_core.data.shards import Files as ShardFiles
    from causal_core.files import cache_root
    from causal_core.tokens.cache import ShardedCache
    from causal_core.tokens.dataset import cache_key, read_tokens
    from causal_core.tokens.run_data import load_encoder
    from causal_core.tokens.tokenise import tokenise
    from ray_jobs.console.quiet import quiet_libraries

    quiet_libraries()
    begin = time.monotonic()
    with user_errors(), Console(stderr=True).status("loading the tokenizer") as status:
        config = _config(model, files, settings or [], trust_remote_code)
        paths = [file.path for file in config.data.weighted_files()]
        cache = cache_root(config.data.cache_dir)
        encoder = load_encoder(config)
        wanted = ShardFiles(paths, ColumnPaths.parsed(columns or ()), unanswered)
        key = cache_key(wanted, encoder, cache)
        table = read_tokens(key, cache)
        there = table is not None
        if table is None:
            shards = ShardedCache(cache / "tokens" / key)

            def progress(done: int) -> None:
                status.update(f"{done:,} rows tokenised")

            if on_ray:
                from ray_jobs.tokenising import tokenise_on_ray

                tokenise_on_ray(config, wanted, encoder, shards, progress)
            else:
                tokenise(wanted, encoder, shards, progress)
            table = shards.read()
            assert table is not None
    seconds = time.monotonic() - begin
    if as_json:
        about = {"rows": table.num_rows, "cache": str(cache / "tokens"), "key": key,
                 "already_there": there, "seconds": seconds}  # fmt: skip
        print_json(about)
        return
    said = f"{table.num_rows:,} rows tokenised in {seconds:.1f} s -> {cache / 'tokens'}"
    if there:
        said = f"{table.num_rows:,} rows, tokenised before: {cache / 'tokens'}"
    Console().print(plain(said))


def _config(model: str, files: list[str], settings: list[str], trust: bool) -> Config:
    from causal_core.config_file import parse_config, read_tree
    from causal_core.errors import UserError
    from causal_core.visible_text import quoted

    for item in settings:
        key = item.partition("=")[0].strip()
        if key == "model.trust_remote_code":
            raise UserError(f"--set {key}: say --trust-remote-code, after reading that code")
        if key == "model.name_or_path" or not key.startswith(_SETTINGS):
            raise UserError(
                f"--set {quoted(item)}: the settings that count here are in "
                f"{', '.join(_SETTINGS)}, and the model is --model"
            )
    tree = read_tree(None, settings)
    tree.setdefault("model", {}).update(name_or_path=model, trust_remote_code=trust)
    tree.setdefault("data", {})["train"] = files
    return parse_config(tree).with_absolute_paths()
