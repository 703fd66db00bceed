"""No prompt of one split may be in another: a model is not judged on what it was trained on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

from causal_core.dataset import TripletDataset
from causal_core.errors import UserError

_COLUMNS = ("system_instruction", "context", "benign_input")


def refuse_overlap(
    splits: Mapping[str, TripletDataset | None], policy: str, warn: Callable[[str], None]
) -> None:
    """Looks for the same (S, context, U) in two splits; test sets may share prompts.

    Raises:
        UserError: training or validation shares prompts with another split, and `policy` is
            `error`.
    """
    prompts = {name: _prompts(data) for name, data in splits.items() if data is not None}
    for one, two in itertools.combinations(prompts, 2):
        if one not in ("train", "validation"):
            continue
        shared = prompts[one] & prompts[two]
        if not shared:
            continue
        text = (
            f"{len(shared)} prompts (S, U) are both in {one} and in {two}: what is measured there "
            "would be memory, not skill"
        )
        if policy == "error":
            raise UserError(f"{text}. Separate the files, or set data.overlap=warn")
        warn(f"warning: {text}")


def _prompts(dataset: TripletDataset) -> set[int]:
    # Hashes, not texts: a set of a million prompts stays small.
    table = dataset.table.select(_COLUMNS)
    return {
        hash(row)
        for batch in table.to_batches(max_chunksize=4096)
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True)
    }
