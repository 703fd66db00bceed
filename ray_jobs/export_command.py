"""`causal export`: a run as an adapter or merged weights that other programs read."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from causal_core.errors import RunFailedError, UserError
from ray_jobs.console.answer import print_json
from ray_jobs.options import Json, RunDir, TrustRun

_TOKEN = "HF_TOKEN"  # noqa: S105 - the name of a variable


class Dtype(StrEnum):
    """Of the weights."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def export_command(
    run: RunDir,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A directory to be made.")],
    merge: Annotated[
        bool, typer.Option("--merge", help="Base and adapter in one; default: the adapter alone.")
    ] = False,
    dtype: Annotated[
        Dtype | None,
        typer.Option(help="Of the weights; default: the run's, float32 for an adapter."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="FILE#SPLIT", help="Rows to compare on; default: the run's last test set."
        ),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, max=1000, help="Rows to compare on.")] = 16,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an earlier export in this place.")
    ] = False,
    push: Annotated[
        str | None,
        typer.Option(
            metavar="REPO", help=f"Upload it to a private hub repository; token in ${_TOKEN}."
        ),
    ] = None,
    trust_remote_code: TrustRun = False,
    as_json: Json = False,
) -> None:
    """Write a run for transformers, PEFT and vLLM, with a model card, and reload it to compare.

    The chat template that goes with it breaks role and control markers in messages, as training
    did, wherever it is used. OUT is whole or absent.

    Example: causal export runs/mine exported --merge --dtype bfloat16
    """
    from rich.console import Console

    from causal_core.export.build import ExportOptions, export_run
    from ray_jobs.console.plain import plain
    from ray_jobs.console.quiet import quiet_libraries

    token = _token(push)
    quiet_libraries()
    console = Console(stderr=as_json)
    options = ExportOptions(
        merge=merge,
        dtype=None if dtype is None else dtype.value,
        data=data,
        rows=rows,
        force=force,
        trust_remote_code=trust_remote_code,
    )
    with Console(stderr=True).status("") as status:
        facts = export_run(
            run.resolve(), out.absolute(), options, lambda text: status.update(plain(text))
        )
    if push is not None:
        _upload(out, push, token)
    if as_json:
        print_json(facts)
        return
    for sentence in facts["sentences"]:
        console.print(plain(sentence), soft_wrap=True)
    console.print(plain(f"{facts['kind']}: {out}"), soft_wrap=True)
    if push is not None:
        console.print(plain(f"uploaded to {push}"), soft_wrap=True)


def _token(push: str | None) -> str | None:
    """The hub token, from the environment alone: it is on no command line and in no file of ours.

    Raises:
        UserError: an upload without one, or without a hub, known before any work.
    """
    if push is None:
        return None
    token = os.environ.get(_TOKEN)
    if not token:
        raise UserError(f"--push needs a token of the hub in the environment: ${_TOKEN} is not set")
    from causal_core.pretrained.hub import check_hub

    check_hub()
    return token


def _upload(out: Path, repository: str, token: str | None) -> None:
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=out)
    except Exception as error:  # noqa: BLE001 - the network's, of whatever library the client is made
        # The reason in one line, without what was sent: a request holds the token.
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else "no reason"
        raise RunFailedError(
            f"the upload to {repository} failed: {reason.replace(str(token), '***')}; the export "
            f"is whole in {out}"
        ) from None
