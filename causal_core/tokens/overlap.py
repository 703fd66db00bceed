"""No prompt of one split may be in another: a model is not judged on what it was trained on."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path

from causal_core.data.folding import FOLDING, folded
from causal_core.errors import UserError
from causal_core.files import CACHE_SETTING, write_whole, writes_to
from causal_core.tokens.dataset import TripletDataset

_PROMPT = ("system_instruction", "context")  # and an input


def refuse_overlap(
    splits: Mapping[str, TripletDataset | None],
    policy: str,
    warn: Callable[[str], None],
    cache: Path,
) -> None:
    """Looks for the same (S, context, U) in two splits, but for what `folded` sets aside, also
    where training has it as U'; test sets may share prompts.

    Args:
        cache: Directory that remembers the answer for a pair of data sets.

    Raises:
        UserError: training or validation shares prompts with another split, and `policy` is
            `error`.
    """
    present = {name: data for name, data in splits.items() if data is not None}
    for one, two in itertools.combinations(present, 2):
        if one not in ("train", "validation"):
            continue
        shared = _shared_prompts(present[one], present[two], cache)
        if not shared:
            continue
        text = (
            f"{shared} prompts (S, U) are both in {one} and in {two}: what is measured there "
            "would be memory, not skill"
        )
        if policy == "error":
            raise UserError(f"{text}. Separate the files, or set data.overlap=warn")
        warn(f"warning: {text}")


def _shared_prompts(one: TripletDataset, two: TripletDataset, cache: Path) -> int:
    """Prompts in both; by the data's fingerprints, so that only new data is looked at."""
    pair = hashlib.sha256(
        f"{FOLDING}/pooled/{one.fingerprint}/{two.fingerprint}".encode()
    ).hexdigest()
    entry = cache / "overlaps" / pair
    with contextlib.suppress(OSError, ValueError):
        return int(entry.read_text(encoding="utf-8"))
    trained = _prompts(one, "benign_input") | _prompts(one, "benign_cf_input")
    count = len(trained & _prompts(two, "benign_input"))
    with writes_to(cache, CACHE_SETTING):
        write_whole(entry, str(count))
    return count


def _prompts(dataset: TripletDataset, which: str) -> set[int]:
    # Hashes, not texts: a set of a million prompts stays small.
    table = dataset.table.select((which, *_PROMPT))
    return {
        hash(tuple(folded(text or "") for text in row))
        for batch in table.to_batches(max_chunksize=4096)
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True)
        if row[0] is not None
    }
