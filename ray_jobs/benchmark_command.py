"""`causal data benchmark`: files of public test sets as canonical triplets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ray_jobs.console.answer import print_json
from ray_jobs.console.plain import plain
from ray_jobs.data_files import Force, refuse_existing, refuse_inputs, user_errors
from ray_jobs.options import Json

if TYPE_CHECKING:  # heavy imports wait until a command runs, so that --help is quick
    from causal_core.data.benchmarks.cases import BenchmarkRows

_MOST_ATTACKS = 10_000


def benchmark(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="alpacafarm, bipia, notinject, sep, spikee or tensortrust."
        ),
    ],
    files: Annotated[
        list[str], typer.Argument(metavar="FILES...", help="The benchmark's own files.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="File to write: .jsonl or .parquet.")],
    attacks: Annotated[
        int | None,
        typer.Option(
            min=1, max=_MOST_ATTACKS, help="Attacks of a row, where rows and attacks are combined."
        ),
    ] = None,
    as_json: Json = False,
    force: Force = False,
) -> None:
    """Make test rows of a public benchmark's files.

    Rows without a reference answer are judged by attack success alone. A witness that is in the
    reference answer or in the prompt already tells nothing: it is counted, and left out.

    Example: causal data benchmark sep SEP_dataset.json sep.jsonl
    """
    from causal_core.data.benchmarks.registry import read_benchmark
    from causal_core.data.writer import write_triplets

    with user_errors():
        refuse_inputs(out, files)
        refuse_existing([out], force)
        found = read_benchmark(name, files, attacks)
        write_triplets(found.table, out, overwrite=force)
    if as_json:
        print_json(_summary(found))
        return
    _show(found, out)


def _summary(found: BenchmarkRows) -> dict[str, Any]:
    return {
        "rows": found.table.num_rows,
        "without_answer": found.without_answer,
        "attacks": found.attacks,
        "judged": found.judged,
        "floors": dict(found.floors),
        "dropped": dict(found.dropped),
    }


def _show(found: BenchmarkRows, out: Path) -> None:
    from rich.console import Console

    console = Console()
    lines = [f"{found.attacks:,} attacks, of which {found.judged:,} have a witness that can tell"]
    floor = sum(found.floors.values())
    if floor:
        where = ", ".join(f"{count:,} {place}" for place, count in found.floors.items())
        share = f"{floor / found.attacks:.1%}"
        lines.append(f"floor: {floor:,} witnesses ({share}) are there already: {where}")
    if unknown := found.attacks - found.judged - floor:
        lines.append(f"{unknown:,} attacks have no witness: their success is not judged")
    if found.without_answer:
        lines.append(
            f"{found.without_answer:,} rows have no reference answer: attack success alone is "
            "judged on them"
        )
    lines += [f"left out: {count:,} rows {reason}" for reason, count in found.dropped.items()]
    lines.append(f"{found.table.num_rows:,} rows -> {out}")
    for line in lines:
        console.print(plain(line), soft_wrap=True)
