"""Triplet files into the token cache: read, checked and tokenised shard by shard.

Reading and checking is Python's, tokenising the library's, which works on all cores and lets
Python go on meanwhile: the next shards are read while earlier ones are tokenised. Two or three
shards are in memory at a time, however many rows there are.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from causal_core.data.shards import Files, Shard, read_shards
from causal_core.errors import UnwritableError, UserError
from causal_core.tokens.cache import ShardedCache, tokenised
from causal_core.tokens.prompts import PromptEncoder

log = logging.getLogger(__name__)

Progress = Callable[[int], None]  # called with the rows that are done

# One shard's spans are laid out, which is Python's, while the library has another one.
_AT_ONCE = 2


def tokenise(
    files: Files, encoder: PromptEncoder, cache: ShardedCache, progress: Progress | None = None
) -> None:
    """Makes the shards that are missing.

    Raises:
        UserError: a bad row, or one that cannot be encoded. Of such data nothing is kept.
    """
    shards: list[tuple[int, int]] = []
    pending: deque[Future[int]] = deque()
    done = 0

    def finish_one() -> None:
        nonlocal done
        done += pending.popleft().result()
        if progress is not None:
            progress(done)

    def take(shard: Shard) -> None:
        while len(pending) > _AT_ONCE:
            finish_one()
        shards.append((shard.file, shard.number))
        pending.append(pool.submit(_kept, shard, encoder, cache))

    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="tokenise") as pool:
        try:
            warnings = read_shards(files, take)
            while pending:
                finish_one()
        except BaseException as error:
            for future in pending:
                future.cancel()
            pool.shutdown()
            if isinstance(error, UserError) and not isinstance(error, UnwritableError):
                cache.discard()
            raise
    for warning in warnings.kept:
        log.warning("%s", warning)
    cache.finish(shards)


def _kept(shard: Shard, encoder: PromptEncoder, cache: ShardedCache) -> int:
    """Tokenises a shard unless an earlier call has; its rows."""
    if cache.rows_of(shard.file, shard.number) != shard.rows:
        cache.write(shard.file, shard.number, tokenised(shard, encoder))
    return shard.rows
