"""Every row of an evaluation in one Parquet file, so that each figure can be traced to answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from causal_core.config_sections import Products
from causal_core.evaluation.rows import RowResult
from causal_core.files import whole_or_absent
from causal_core.tokens.dataset import TripletDataset

ROWS = "rows.parquet"
_TOKENS = pa.list_(pa.int32())
_SCHEMA = pa.schema(
    [
        pa.field("set", pa.string(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("matmul", pa.string(), nullable=False),  # in which type it was computed
        pa.field("index", pa.int64(), nullable=False),  # of the row in its set
        pa.field("injection", pa.int64()),
        pa.field("id", pa.string(), nullable=False),
        *(pa.field(name, pa.string()) for name in ("family", "wording", "task")),
        pa.field("clean_prompt_ids", _TOKENS, nullable=False),
        pa.field("attacked_prompt_ids", _TOKENS),
        pa.field("clean_answer", pa.string(), nullable=False),
        pa.field("attacked_answer", pa.string()),
        *(
            pa.field(name, pa.bool_())
            for name in (
                "benign_exact", "benign_contained", "attacked_exact", "attack_succeeded",
                "trigger_words", "own_is_attacked",
            )
        ),
        *(
            pa.field(name, pa.float64())
            for name in (
                "benign_f1", "uplift", "margin", "own_margin", "own_margin_whole",
                "causal_stability", "spurious_separation", "causal_discrimination",
            )
        ),
    ]
)  # fmt: skip


def write_rows(
    path: Path,
    datasets: Mapping[str, Mapping[str, TripletDataset]],
    rows: Mapping[str, Mapping[str, Sequence[RowResult]]],
    matmul: Products,
) -> Path:
    """Writes answers and scores of all models on all test sets, with the prompts they answered.

    Args:
        datasets: By model and test set: the tokens are those of the model's own tokenizer.
        rows: Likewise.
        matmul: In which type their products were.
    """
    with whole_or_absent(path) as temporary, pq.ParquetWriter(temporary, _SCHEMA) as writer:
        for model, sets in rows.items():
            for name, found in sets.items():
                dataset = datasets[model][name]
                of = {"set": name, "model": model, "matmul": matmul}
                records = [{**of, **_record(dataset, row)} for row in found]
                writer.write_table(pa.Table.from_pylist(records, schema=_SCHEMA))
    return path


def _record(dataset: TripletDataset, row: RowResult) -> dict[str, object]:
    tokens = dataset.tokens(row.index).attacked(row.injection)
    return {
        "clean_prompt_ids": [*tokens.system, *tokens.benign],
        "attacked_prompt_ids": [*tokens.system, *tokens.only.prompt] if tokens.injections else None,
        **asdict(row),
    }
