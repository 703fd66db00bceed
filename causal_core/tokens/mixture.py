"""Training data of several files, some of which come more or less often than once per epoch.

Which rows come is a function of the weight alone, so the data position stays one number: all rows
as often as the weight is whole, then for the rest of it rows that are evenly spaced.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from causal_core.errors import UserError
from causal_core.tokens.dataset import TripletDataset, rows_of


def weighted(dataset: TripletDataset, weight: float, cache: Path) -> TripletDataset:
    """The rows `weight` times; repeated rows take no memory, a part of them has a cache file.

    Raises:
        UserError: not one row is left.
    """
    whole, rest = int(weight), weight - int(weight)
    tables = [dataset.table] * whole
    if rest:
        steps = np.floor(np.arange(len(dataset) + 1) * rest)
        name = hashlib.sha256(f"{dataset.fingerprint}*{rest!r}".encode()).hexdigest()
        chosen = pa.chunked_array([pa.array(np.diff(steps) > 0)])
        tables.append(rows_of(dataset.table, chosen, cache / "tokens" / f"{name}.arrow"))
    table = pa.concat_tables(tables, promote_options="permissive")
    if not table.num_rows:
        raise UserError(
            f"a weight of {weight:g} leaves none of {len(dataset):,} training rows: raise it"
        )
    return replace(dataset, table=table, fingerprint=f"{dataset.fingerprint}*{weight!r}")


def mixed(parts: Sequence[TripletDataset]) -> TripletDataset:
    """All rows of several data sets, one after the other."""
    table = pa.concat_tables([part.table for part in parts], promote_options="permissive")
    names = "/".join(part.fingerprint for part in parts)
    return TripletDataset(table, hashlib.sha256(names.encode()).hexdigest())
