"""`causal data inject`: triplets from a team's own traffic."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ray_jobs.console.answer import print_json
from ray_jobs.console.plain import plain
from ray_jobs.data_files import (
    Files,
    Force,
    Format,
    Map,
    only_writer_into,
    refuse_existing,
    refuse_inputs,
    user_errors,
)
from ray_jobs.options import Json

if TYPE_CHECKING:  # heavy imports wait until a command runs, so that --help is quick
    from causal_core.data.reader import ReadResult
    from causal_core.data.schema import Triplet
    from causal_core.generator.inject import Injected

_PREVIEWED = 5
_SHOWN_CHARACTERS = 200
_MOST_ATTACKS = 64


class SplitBy(StrEnum):
    """What two splits may not share."""

    AUTO = "auto"
    PROMPT = "prompt"
    ROW = "row"


_BY_PROMPT = {SplitBy.AUTO: None, SplitBy.PROMPT: True, SplitBy.ROW: False}


def inject(
    inputs: Files,
    out_dir: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="Directory for the files.")],
    attacks: Annotated[
        int, typer.Option(min=1, max=_MOST_ATTACKS, help="Attacks of a training row; others: one.")
    ] = 1,
    validation: Annotated[
        float, typer.Option(min=0.01, max=0.4, help="Share of the rows for validation.")
    ] = 0.1,
    test: Annotated[
        float, typer.Option(min=0.02, max=0.4, help="Share of the rows for both tests together.")
    ] = 0.2,
    split_by: Annotated[
        SplitBy, typer.Option(help="Splits share no prompt, or no row; auto: by prompt if it can.")
    ] = SplitBy.AUTO,
    seed: Annotated[int, typer.Option(help="Another seed gives other attacks and splits.")] = 0,
    file_format: Annotated[Format, typer.Option("--format", help="Kind of file.")] = Format.JSONL,
    columns: Map = None,
    as_json: Json = False,
    force: Force = False,
) -> None:
    """Make triplets of plain rows (system_instruction, benign_input, benign_output).

    Chats and instructions are taken for such rows, other layouts by --map FIELD=PATH. Each row
    gets another one's input as counterfactual and composed attacks; its answer is the safe answer.
    Writes train, validation, test_seen and test_novel (attack families that training never has),
    and dataset.json about them, once the splits are proven not to leak.

    Example: causal data inject traffic.jsonl data/own --attacks 4
    """
    from causal_core.data.writer import new_file, to_table, write_triplets
    from causal_core.generator.inject import inject as inject_rows
    from causal_core.generator.vocabulary import SPLITS

    with user_errors(), only_writer_into(out_dir):
        paths = {split: out_dir / f"{split}.{file_format}" for split in SPLITS}
        about_path = out_dir / "dataset.json"
        refuse_existing([*paths.values(), about_path], force)
        for path in paths.values():
            refuse_inputs(path, inputs)
        rows = list(_answered(inputs, columns).triplets())
        injected = inject_rows(
            rows,
            attacks=attacks,
            validation=validation,
            test=test,
            seed=seed,
            by_prompt=_BY_PROMPT[split_by],
        )
        about = {
            "seed": seed,
            "files": {split: path.name for split, path in paths.items()},
            **_summary(injected),
            "own_splits": sum(row.split is not None for row in rows),
        }
        for split, rows in injected.splits.items():
            write_triplets(to_table(rows), paths[split], overwrite=force)
        # Written last: its presence says that the data set is complete.
        with new_file(about_path, overwrite=force) as temporary:
            temporary.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    if as_json:
        preview = [row.to_row() for row in _preview(injected)]
        print_json({**about, "preview": preview})
        return
    _show(injected, about["own_splits"], out_dir)


def _answered(files: list[str], columns: list[str] | None) -> ReadResult:
    """The rows of the files, all of which have an answer.

    Raises:
        DataError: a bad row, or one without an answer.
    """
    from causal_core.data.column_paths import ColumnPaths
    from causal_core.data.reader import read_triplets
    from causal_core.data.schema import DataError

    where = ColumnPaths.parsed(columns or ())
    result = read_triplets(files, on_error="collect", columns=where, convert=True)
    unanswered = [problem for problem in result.errors if problem.field == "benign_output"]
    if unanswered:
        reason = (
            "there is no answer (benign_output), which is what the attacked row has to be answered "
            "with as well: give it, or let a model write it with causal data targets"
        )
        raise DataError([replace(problem, reason=reason) for problem in unanswered[:1]])
    result.refuse_errors()
    return result


def _summary(injected: Injected) -> dict[str, Any]:
    """What was made, as plain values."""
    rows = [row for members in injected.splits.values() for row in members]
    made = [attack for row in rows for attack in row.injections]

    def counts(field: str) -> dict[str, int]:
        return dict(Counter(str(getattr(attack, field)) for attack in made).most_common())

    return {
        "rows": {split: len(members) for split, members in injected.splits.items()},
        "attacks": {
            split: sum(len(row.injections) for row in members)
            for split, members in injected.splits.items()
        },
        "system_prompts": {
            split: len({row.system_instruction for row in members})
            for split, members in injected.splits.items()
        },
        "split_by": "prompt" if injected.by_prompt else "row",
        "attack_families": {
            split: sorted({a.attack_family for row in members for a in row.injections})
            for split, members in injected.splits.items()
        },
        "families": counts("attack_family"),
        "payloads": counts("payload"),
        "positions": counts("position"),
        "dropped": dict(injected.dropped),
        "without_counterfactual": injected.alone,
        "leaks": injected.leaks.to_dict(),
    }


def _preview(injected: Injected) -> list[Triplet]:
    """A few rows, of every split."""
    rows = injected.splits
    spread = [
        members[turn] for turn in range(2) for members in rows.values() if turn < len(members)
    ]
    return list(islice(spread, _PREVIEWED))


def _show(injected: Injected, own_splits: int, out_dir: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    console, about = Console(), _summary(injected)
    for row in _preview(injected):
        attack = row.injections[0]
        kind = f"{attack.attack_family}, {attack.payload}, {attack.position}"
        lines = Table(box=None, pad_edge=False, show_header=False, title_justify="left")
        lines.title = plain(f"{row.split} {_short(row.id)}")
        for name, text in (
            ("system", row.system_instruction),
            ("input", row.benign_input),
            ("answer", row.benign_output),
            (kind, attack.injection_input),
            ("witness", attack.witness or "-"),
        ):
            lines.add_row(plain(name, "bold"), plain(_short(text)))
        console.print(lines)
    grid = Table("split", "rows", "attacks", "system prompts", "families", box=None, pad_edge=False)
    for split in injected.splits:
        names = ", ".join(about["attack_families"][split])
        numbers = (about[name][split] for name in ("rows", "attacks", "system_prompts"))
        grid.add_row(split, *(f"{number:,}" for number in numbers), names)
    console.print(grid)
    for name in ("payloads", "positions"):
        console.print(plain(f"{name}: " + ", ".join(f"{k} {n:,}" for k, n in about[name].items())))
    for reason, count in injected.dropped.items():
        console.print(plain(f"dropped: {count:,} rows {reason}"))
    if injected.alone:
        why = "no other row of their split has their system prompt or task"
        console.print(plain(f"without U': {injected.alone:,} rows ({why})"))
    if own_splits:
        told = f"{own_splits:,} rows name a split of their own, which is not kept: all are cut anew"
        console.print(plain(told))
    if injected.by_prompt:
        console.print(
            plain("Split by system prompt: the tests share theirs with each other alone.")
        )
    else:
        console.print(plain("Split by rows: test rows have system prompts that training has, too."))
    console.print(plain(f"No leaks between the splits. Written to {out_dir}"))


def _short(text: str) -> str:
    from causal_core.visible_text import quoted

    fits = text.isprintable() and len(text) <= _SHOWN_CHARACTERS
    return text if fits else quoted(text, _SHOWN_CHARACTERS)
