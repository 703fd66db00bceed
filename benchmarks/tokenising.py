"""How fast triplet files become the token cache, beside the tokenizer library alone.

    python -m benchmarks.tokenising [--rows 20000] [--rounds 5] [--model demo] [--json OUT]

The library gets every distinct prompt, answer and witness of a shard as one finished text and does
nothing but `encode_batch` (and, as its own faster call, `encode_batch_fast`), on all cores that it
wants. Ours reads the Parquet file, checks every row, tokenises, and writes the cache. All of them
take turns, with the order reversed every other round; a ratio compares the two of one round. The
process's own memory (anonymous pages) is looked at in the first and the last quarter of the rows.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from benchmarks.growth import spread
from causal_core.config_file import parse_config
from causal_core.data.column_paths import ColumnPaths
from causal_core.data.schema import Triplet
from causal_core.data.shards import Files, Shard, read_shard, shards_in
from causal_core.data.writer import to_table
from causal_core.device import available_cores
from causal_core.generator.generate import generate_dataset
from causal_core.tokens.cache import ShardedCache
from causal_core.tokens.columns import with_tokens
from causal_core.tokens.prompts import PromptEncoder
from causal_core.tokens.run_data import load_encoder
from causal_core.tokens.tokenise import tokenise

GENERATED = 20_000  # rows of their own; beyond, they come again with other inputs
TURNS = ("encode_batch", "encode_batch_fast", "ours", "ours, tokens only")


def write_rows(path: Path, rows: int) -> None:
    """Triplets of which no input comes twice, written part by part."""
    made = generate_dataset({"train": min(rows, GENERATED)}, seed=0)["train"]
    writer = None
    for start in range(0, rows, GENERATED):
        part = [numbered(t, start // GENERATED) for t in made[: rows - start]]
        table = to_table(part)
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def numbered(triplet: Triplet, copy: int) -> Triplet:
    """The same row with another id and, but for the first copy, with other inputs: by a word that
    is no row's witness, as a number alone would be."""
    if not copy:
        return triplet
    other = triplet.benign_cf_input
    return replace(
        triplet,
        id=f"{triplet.id}-{copy}",
        benign_input=f"{triplet.benign_input} (v{copy})",
        benign_cf_input=None if other is None else f"{other} (v{copy})",
        injections=tuple(
            replace(i, injection_input=f"{i.injection_input} (v{copy})") for i in triplet.injections
        ),
    )


def texts_of(shard: Shard, encoder: PromptEncoder) -> list[str]:
    """What the model's chat template makes of everything distinct in a shard."""
    t = encoder.template
    texts: dict[str, None] = {}
    for row in (row for batch in shard.batches for row in batch.to_pylist()):
        triplet = Triplet.from_row(row)
        others = [triplet.benign_cf_input, *(i.injection_input for i in triplet.injections)]
        for text in (triplet.benign_input, *(other for other in others if other is not None)):
            turn = encoder.user_turn(text, triplet.context)
            texts[f"{t.before}{triplet.system_instruction}{t.between}{turn}{t.after}"] = None
        answers = [triplet.benign_output]
        for i in triplet.injections:
            answers += [i.injection_output, i.attack_output or i.witness or ""]
            texts[i.witness or ""] = None
        texts.update(dict.fromkeys(f"{answer}{encoder.ending}" for answer in answers))
    return [text for text in texts if text]


def shards_of(path: Path) -> Iterator[Shard]:
    """The shards of a Parquet file one by one."""
    files = Files([str(path)], ColumnPaths())
    for number in range(shards_in(files.sources()[0])):
        shard = read_shard(files, 0, number)
        assert shard is not None
        yield shard


def library(path: Path, encoder: PromptEncoder, name: str) -> float:
    """Seconds of the library's own call over all shards."""
    encode: Callable[..., Any] = getattr(encoder.tokenizer.backend_tokenizer, name)
    seconds = 0.0
    for shard in shards_of(path):
        texts = texts_of(shard, encoder)
        for start in range(0, len(texts), 1024):
            some = texts[start : start + 1024]
            begin = time.perf_counter()
            encode(some, add_special_tokens=False)
            seconds += time.perf_counter() - begin
    return seconds


def tokens_only(path: Path, encoder: PromptEncoder) -> float:
    """Seconds of our way from rows that are read to columns of tokens."""
    seconds = 0.0
    for shard in shards_of(path):
        begin = time.perf_counter()
        for batch in shard.batches:
            with_tokens(batch, encoder)
        seconds += time.perf_counter() - begin
    return seconds


def ours(path: Path, encoder: PromptEncoder, cache: Path, memory: list[int]) -> float:
    """Seconds from the file to the cache; memory after each shard goes into `memory`."""
    shutil.rmtree(cache, ignore_errors=True)
    begin = time.perf_counter()
    files = Files([str(path)], ColumnPaths())
    tokenise(files, encoder, ShardedCache(cache), lambda done: memory.append(anonymous_bytes()))
    return time.perf_counter() - begin


def anonymous_bytes() -> int:
    """This process's own memory."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def measure(path: Path, encoder: PromptEncoder, rounds: int) -> dict[str, list[float]]:
    """Seconds of every turn by round, after one that warms up, and memory in bytes."""
    found: dict[str, list[float]] = {turn: [] for turn in TURNS}
    found |= {"first quarter": [], "last quarter": []}
    for number in range(rounds + 1):
        for turn in TURNS if number % 2 else TURNS[::-1]:
            memory: list[int] = []
            if turn == "ours":
                seconds = ours(path, encoder, path.with_name("cache"), memory)
            elif turn == "ours, tokens only":
                seconds = tokens_only(path, encoder)
            else:
                seconds = library(path, encoder, turn)
            if not number:
                continue
            found[turn].append(seconds)
            if memory:
                quarter = -(-len(memory) // 4)
                found["first quarter"].append(max(memory[:quarter]))
                found["last quarter"].append(max(memory[-quarter:]))
    return found


def report(found: dict[str, list[float]], rows: int) -> dict[str, Any]:
    """Rates and ratios by round."""
    rates = {turn: [rows / seconds for seconds in found[turn]] for turn in TURNS}
    return {
        "rows": rows,
        "cores": available_cores(),
        "rows_per_second": rates,
        "ratio_to_encode_batch": {
            turn: [a / b for a, b in zip(rates[turn], rates["encode_batch"], strict=True)]
            for turn in TURNS
        },
        "anonymous_bytes": {q: found[q] for q in ("first quarter", "last quarter")},
    }


def show(console: Console, result: dict[str, Any]) -> None:
    """One line for each turn."""
    table = Table(title=f"{result['rows']:,} rows on {result['cores']} cores")
    table.add_column("")
    for column in ("rows/s", "beside encode_batch"):
        table.add_column(column, justify="right")
    for turn in TURNS:
        ratios: Sequence[float] = result["ratio_to_encode_batch"][turn]
        table.add_row(turn, spread(result["rows_per_second"][turn], ",.0f"), spread(ratios, ".2f"))
    console.print(table)
    first, last = (
        statistics.median(result["anonymous_bytes"][q]) / 2**20
        for q in ("first quarter", "last quarter")
    )
    console.print(f"own memory: {first:,.0f} MiB in the first quarter, {last:,.0f} in the last")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="demo", help="whose tokenizer")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    encoder = load_encoder(parse_config({"model": {"name_or_path": given.model}}))
    with tempfile.TemporaryDirectory(prefix="tokenising-") as folder:
        path = Path(folder) / "rows.parquet"
        write_rows(path, given.rows)
        result = report(measure(path, encoder, given.rounds), given.rows)
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    show(Console(), result)


if __name__ == "__main__":
    main()
