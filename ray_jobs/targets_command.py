"""`causal data targets`: answers written by the model itself."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ray_jobs.console.answer import print_json
from ray_jobs.console.plain import plain
from ray_jobs.data_files import Files, Force, Map, refuse_existing, refuse_inputs, user_errors
from ray_jobs.options import AdapterPlace, Json, ModelPlace, Settings, TrustModel

if TYPE_CHECKING:  # heavy imports wait until a command runs, so that --help is quick
    from causal_core.data.schema import Triplet
    from ray_jobs.own_answers import Answered

_SHOWN_REASONS = 5


def targets(
    inputs: Files,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="File to write: .jsonl or .parquet.")],
    model: ModelPlace = None,
    adapter: AdapterPlace = None,
    run: Annotated[
        Path | None, typer.Option(metavar="RUN_DIR", help="The model that a run has trained.")
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, max=4096, help="Longer answers are left out, not cut.")
    ] = 256,
    columns: Map = None,
    settings: Settings = None,
    trust_remote_code: TrustModel = False,
    as_json: Json = False,
    force: Force = False,
) -> None:
    """Let a model write the answers that rows do not have: benign ones, and so the safe ones.

    Its greedy answer to the clean prompt becomes the benign answer and the safe answer under each
    attack, so training keeps what the model can do. Answers that are there stay. Chats that end
    with the question are such rows, too; other layouts are read by --map FIELD=PATH. An
    interrupted command goes on from OUT.part.

    Example: causal data targets traffic.jsonl answered.jsonl --model demo
    """
    from rich.console import Console

    from causal_core.data.column_paths import ColumnPaths
    from causal_core.data.reader import read_triplets
    from causal_core.data.schema import DataError
    from causal_core.data.writer import to_table, write_triplets
    from causal_core.run.lock import only_maker
    from ray_jobs.data_summary import leaks_of, show_leaks

    with user_errors():
        if out.suffix.lower() not in (".jsonl", ".parquet"):
            raise DataError.in_file(out, "unknown kind of file; write .jsonl or .parquet")
        refuse_inputs(out, inputs)
        refuse_existing([out], force)
        where = ColumnPaths.parsed(columns or ())
        result = read_triplets(
            inputs, on_error="collect", columns=where, convert=True, unanswered=True
        )
        result.refuse_errors()
        rows = list(result.triplets())
        console = Console(stderr=True)
        part = out.with_name(f"{out.name}.part")
        with only_maker(out, moved_by="OUT"):
            refuse_existing([out], force)  # again: another may have come to its end since
            made = _answered(
                rows, part, model, adapter, run, max_new_tokens, settings or [],
                trust_remote_code, console,
            )  # fmt: skip
            if not made.rows:
                reason = f"every row was left out: {made.dropped[0][1]}"
                raise DataError.in_file(out, reason)
            table = to_table(made.rows)
            write_triplets(table, out, overwrite=force)
            part.unlink(missing_ok=True)
    leaks = leaks_of(table)
    reasons = Counter(reason for _, reason in made.dropped)
    if as_json:
        about = {"rows": len(made.rows), "answered": made.written, "dropped": dict(reasons),
                 "leaks": None if leaks is None else leaks.to_dict()}  # fmt: skip
        print_json(about)
        return
    console = Console()
    said = f"{len(made.rows):,} rows -> {out}, {made.written:,} of them answered by the model"
    console.print(plain(said))
    for reason, count in reasons.most_common(_SHOWN_REASONS):
        console.print(plain(f"{count:,} rows left out: {reason}"))
    if leaks is not None:
        show_leaks(console, leaks)


def _answered(
    rows: list[Triplet],
    part: Path,
    model: str | None,
    adapter: str | None,
    run: Path | None,
    max_new_tokens: int,
    settings: list[str],
    trust_remote_code: bool,
    console: object,
) -> Answered:
    from rich.console import Console

    from causal_core.errors import UserError
    from causal_core.tokens.run_data import load_encoder
    from ray_jobs.console.quiet import quiet_libraries
    from ray_jobs.own_answers import own_answers, with_answers
    from ray_jobs.subjects import Asked, evaluation_config, subjects_asked_for
    from ray_jobs.training.ray_session import refused_here

    assert isinstance(console, Console)
    if model is None and adapter is None and run is None:
        raise UserError("no model to ask: name one with --model, --adapter or --run")
    quiet_libraries()
    asked = Asked(
        run=None if run is None else run.resolve(),
        model=model,
        adapter=adapter,
        tests={"rows": [str(part)]},  # what is answered are the rows above
        settings=settings,
        trust_remote_code=trust_remote_code,
    )
    config = evaluation_config(asked)
    if (missing := refused_here(config)) is not None:
        raise UserError(f"{missing} (or --set resources.gpus_per_worker=0)")
    subject = subjects_asked_for(asked, config)[-1]  # what was trained, else the base
    with console.status("loading the model") as status:
        answers = own_answers(
            rows, config, subject, part, max_new_tokens,
            lambda done, of: status.update(f"{done:,} of {of:,} prompts answered"),
        )  # fmt: skip
    return with_answers(rows, answers, load_encoder(subject.config))
