"""How many tokens rows take, branch by branch, beside what a run has room for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from causal_core.tokens.prompts import PromptEncoder
from causal_core.tokens.rows import token_rows, tokens_of
from causal_core.tokens.triplet import TripletTokens

BENIGN, COUNTERFACTUAL = "benign", "counterfactual"
SAFE, ATTACKED = "attacked with the safe answer", "attacked with what the attack wants"
_BATCH_ROWS = 1024
_EXAMPLES = 3


@dataclass
class Room:
    """What a split takes; a row fits where its longest branch does."""

    limit: int  # data.max_length
    rows: int = 0
    longest: int = 0
    too_long: int = 0  # rows
    branches: Counter[str] = field(default_factory=Counter)  # rows by a branch that is too long
    examples: list[str] = field(default_factory=list)  # ids


def room_of(table: pa.Table, encoder: PromptEncoder, limit: int) -> Room:
    """Counts the tokens of each row as a run does (`UserError` names one that has none)."""
    room = Room(limit)
    for batch in table.to_batches(max_chunksize=_BATCH_ROWS):
        for row in token_rows(batch.to_pylist(), encoder):
            room.rows += 1
            room.longest = max(room.longest, row["longest"])
            if row["longest"] > limit:
                room.too_long += 1
                lengths = branch_lengths(tokens_of(row))
                room.branches.update(name for name, n in lengths.items() if n > limit)
                room.examples += [row["id"]] if len(room.examples) < _EXAMPLES else []
    return room


def branch_lengths(row: TripletTokens) -> Mapping[str, int]:
    """Tokens of each prompt with its answer; of several attacks the longest."""
    shared = len(row.system)
    safe, attacked = [0], [0]
    for injection in row.injections:
        prompt = shared + len(injection.prompt)
        # On the attacked prompt the benign answer is scored too, and the witness.
        safe.append(prompt + max(len(row.benign_answer), len(injection.answer)))
        attacked.append(prompt + max(len(injection.attack_answer), len(injection.witness)))
    return {
        BENIGN: shared + len(row.benign) + len(row.benign_answer),
        COUNTERFACTUAL: shared + len(row.counterfactual),
        SAFE: max(safe),
        ATTACKED: max(attacked),
    }
