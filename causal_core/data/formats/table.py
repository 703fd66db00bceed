"""THE table of the kinds of file that are read."""

from __future__ import annotations

from collections.abc import Callable

from causal_core.data.formats.arrow import read_arrow
from causal_core.data.formats.documents import read_json
from causal_core.data.formats.parquet import read_parquet
from causal_core.data.formats.separated import SUFFIXES as SEPARATED
from causal_core.data.formats.separated import read_separated
from causal_core.data.reading import Reading
from causal_core.data.sources import COMPRESSED_SUFFIXES, TEXT_SUFFIXES, Source

# What reads a kind of file: it hands every row to the `Reading`, which checks it.
FORMATS: dict[str, Callable[[Source, Reading], None]] = {
    **dict.fromkeys((*TEXT_SUFFIXES, *COMPRESSED_SUFFIXES), read_json),
    **dict.fromkeys(SEPARATED, read_separated),
    **dict.fromkeys((".parquet", ".pq"), read_parquet),
    **dict.fromkeys((".arrow", ".feather", ".ipc"), read_arrow),
}
