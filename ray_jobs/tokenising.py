"""Tokenising as a Ray Data job: each worker reads, checks and tokenises shards of Parquet files.

A shard is a function of its file and number (`causal_core.data.shards`), so the cache is the one
that this machine alone would make, byte for byte, and shards that are there are not made again.
What a worker made travels through the object store, a few shards at a time, and is kept where the
command runs: workers need the data and the model, but no storage that all of them share.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from causal_core.config import Config
from causal_core.data.shards import Files, is_divisible, read_shard, read_shards, shards_in
from causal_core.errors import RunFailedError, UserError
from causal_core.tokens.cache import ShardedCache, tokenised
from causal_core.tokens.prompts import PromptEncoder
from causal_core.tokens.run_data import load_encoder
from causal_core.tokens.tokenise import Progress
from causal_core.visible_text import shown
from ray_jobs.console.quiet import quiet_libraries
from ray_jobs.training.ray_session import ray_session

_Record = dict[str, Any]


def tokenise_on_ray(
    config: Config,
    files: Files,
    encoder: PromptEncoder,
    cache: ShardedCache,
    progress: Progress | None = None,
) -> None:
    """Makes the shards that are missing, on all CPUs of the cluster.

    Raises:
        UserError: as of `tokenise`, and files other than Parquet.
        RunFailedError: Ray failed. Shards that were made are kept.
    """
    shards = _shards_of(files)
    rows = {shard: cache.rows_of(*shard) for shard in shards}
    missing = [{"file": f, "number": n} for (f, n), count in rows.items() if count is None]
    done = sum(count for count in rows.values() if count is not None)
    if missing:
        with (
            tempfile.TemporaryDirectory(prefix="causal-tokenize-") as place,
            ray_session(
                config.model_copy(update={"run": config.run.model_copy(update={"dir": place})})
            ),
        ):
            for record in _made(config, files, encoder.fingerprint(), missing):
                shard = (record["file"], record["number"])
                if record["error"]:
                    _refuse(files, cache, record["error"])
                if record["rows"]:
                    cache.write(*shard, record["content"])
                rows[shard] = record["rows"]
                done += record["rows"]
                if progress is not None:
                    progress(done)
    cache.finish(shard for shard, count in rows.items() if count)
    table = cache.read()
    if table is None or pc.count_distinct(table.column("id")).as_py() < table.num_rows:
        _refuse(files, cache, "shards that do not fit together")


def _shards_of(files: Files) -> list[tuple[int, int]]:
    """All shards that there can be, by file and number."""
    sources = files.sources()
    others = [source.name for source in sources if not is_divisible(source.path)]
    if others:
        raise UserError(
            f"--ray reads parts of files, which only Parquet has, not {shown(others[0])}: "
            "causal data convert FILES OUT.parquet first, or tokenize on this machine alone"
        )
    return [(i, n) for i, source in enumerate(sources) for n in range(shards_in(source))]


def _refuse(files: Files, cache: ShardedCache, reason: str) -> None:
    """Says what is wrong with the files as it is said of any: they are read as a whole for it."""
    cache.discard()
    read_shards(files, lambda shard: None)
    raise UserError(reason)  # nothing is wrong with the rows, but a text cannot be encoded


def _made(
    config: Config, files: Files, fingerprint: str, missing: list[_Record]
) -> Iterator[_Record]:
    """The shards that are missing, in the order in which they are finished."""
    import ray

    data = ray.data
    data.DataContext.get_current().enable_progress_bars = False
    most = max(1, min(len(missing), int(ray.cluster_resources().get("CPU", 1))))
    sizes = [source.path.stat().st_size for source in files.sources()]
    job = data.from_items(missing, override_num_blocks=len(missing)).map(
        _Tokeniser,
        fn_constructor_args=(config.model_dump(), files, sizes, fingerprint),
        compute=data.ActorPoolStrategy(min_size=1, max_size=most),
        num_cpus=1,
    )
    try:
        yield from job.iter_rows()
    except ray.exceptions.RayError as error:
        raise RunFailedError(
            f"Ray could not tokenise: {shown(str(error).strip().splitlines()[-1])}; what was made "
            "is kept, the same command goes on"
        ) from error


@dataclass
class _Tokeniser:
    """An actor: it loads the tokenizer once."""

    config: _Record
    files: Files
    sizes: list[int]
    fingerprint: str

    def __post_init__(self) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # Ray gives each actor one core
        quiet_libraries()
        self._encoder = load_encoder(Config.model_validate(self.config))
        self._problem = self._another()

    def __call__(self, record: _Record) -> _Record:
        made = {**record, "rows": 0, "content": b"", "error": self._problem}
        if self._problem:
            return made
        try:
            shard = read_shard(self.files, record["file"], record["number"])
            if shard is not None:
                made |= {"rows": shard.rows, "content": tokenised(shard, self._encoder)}
        except UserError as error:
            made["error"] = str(error)
        return made

    def _another(self) -> str:
        """What this node has that the command's machine has not."""
        if self._encoder.fingerprint() != self.fingerprint:
            return (
                "a node of the cluster has another tokenizer or chat template for this model: "
                "give all of them the same files and the same version of transformers"
            )
        sizes = [source.path.stat().st_size for source in self.files.sources()]
        return "" if sizes == self.sizes else "a node of the cluster has other data files"
