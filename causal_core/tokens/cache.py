"""Tokenised rows on disk: Arrow files that are mapped into memory, each of them whole or absent.

What is made of triplet files is a directory of shards and a list of them, which is written last:
tokenising that was interrupted goes on with the shards that are missing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from causal_core.data.shards import Shard
from causal_core.files import CACHE_SETTING, whole_or_absent, write_whole, writes_to
from causal_core.tokens.columns import TOKEN_SCHEMA, with_tokens
from causal_core.tokens.prompts import PromptEncoder

_WHOLE = "whole.json"


def read_table(file: Path) -> pa.Table | None:
    """The mapped rows of a file; None where there is none or it is damaged (it is made again)."""
    try:
        return pa.ipc.open_file(pa.memory_map(str(file))).read_all()
    except (OSError, pa.ArrowInvalid):
        return None


def write_table(file: Path, batches: Iterable[pa.RecordBatch]) -> None:
    """Writes rows with their tokens (`UnwritableError` says what is in the way)."""
    with (
        _writing(file) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, TOKEN_SCHEMA) as writer,
    ):
        for batch in batches:
            writer.write_batch(batch)


def tokenised(shard: Shard, encoder: PromptEncoder) -> bytes:
    """The content of a shard's file: the same wherever it is made.

    Raises:
        UserError: names the row that cannot be encoded.
    """
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, TOKEN_SCHEMA) as writer:
        for batch in shard.batches:
            writer.write_batch(with_tokens(batch, encoder))
    return bytes(sink.getvalue())


@dataclass(frozen=True)
class ShardedCache:
    """The shards of one data set for one encoder."""

    directory: Path

    def read(self) -> pa.Table | None:
        """All rows; None where shards are missing or damaged."""
        try:
            names = json.loads((self.directory / _WHOLE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        tables = [read_table(self.directory / name) for name in names]
        found = [table for table in tables if table is not None]
        return pa.concat_tables(found) if found and len(found) == len(tables) else None

    def rows_of(self, file: int, number: int) -> int | None:
        """How many rows a shard has that is there; None where it is to be made."""
        table = read_table(self._path(file, number))
        return None if table is None else int(table.num_rows)

    def write(self, file: int, number: int, content: bytes) -> None:
        """Keeps what `tokenised` made."""
        with _writing(self._path(file, number)) as temporary:
            temporary.write_bytes(content)

    def finish(self, shards: Iterable[tuple[int, int]]) -> None:
        """Says that these shards, by file and number, are all of the data set."""
        names = [self._path(*shard).name for shard in sorted(shards)]
        with writes_to(self.directory, CACHE_SETTING):
            write_whole(self.directory / _WHOLE, json.dumps(names))

    def discard(self) -> None:
        """Removes the shards of files that cannot be used: other content has another key."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _path(self, file: int, number: int) -> Path:
        return self.directory / f"{file:05}-{number:07}.arrow"


@contextmanager
def _writing(file: Path) -> Iterator[Path]:
    with writes_to(file.parent, CACHE_SETTING), whole_or_absent(file) as temporary:
        yield temporary
