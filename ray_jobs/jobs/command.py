"""`causal jobs list|logs|stop`."""

from __future__ import annotations

from typing import Annotated

import typer

from ray_jobs.console.answer import print_json
from ray_jobs.console.help import WholeLines
from ray_jobs.console.plain import plain, printable
from ray_jobs.jobs.client import Address
from ray_jobs.options import Json

_Job = Annotated[str, typer.Argument(metavar="JOB", help="As `causal jobs list` shows it.")]

jobs_app = typer.Typer(
    cls=WholeLines,
    help="The jobs of a Ray cluster.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def _started(milliseconds: int | None) -> str:
    """When a job began, in UTC, as a server says it; `?` where there is no such time."""
    from datetime import UTC, datetime

    try:
        return f"{datetime.fromtimestamp((milliseconds or 0) / 1000, UTC):%Y-%m-%d %H:%M:%S}"
    except (ValueError, OverflowError, OSError):
        return "?"


@jobs_app.command("list")
def list_jobs(
    address: Address = None,
    as_json: Json = False,
) -> None:
    """List submitted jobs, the newest first.

    Example: causal jobs list --address http://127.0.0.1:8265
    """

    from rich.console import Console
    from rich.table import Table

    from ray_jobs.jobs.client import connect, explained, job_server_address
    from ray_jobs.jobs.follow import RUN_DIR

    url = job_server_address(address)
    client = connect(url)
    with explained(url):
        jobs = [job for job in client.list_jobs() if job.submission_id]
    jobs.sort(key=lambda job: job.start_time or 0, reverse=True)
    if as_json:
        rows = [
            {
                "job": job.submission_id,
                "status": job.status.value,
                "exit_code": job.driver_exit_code,
                "run_dir": (job.metadata or {}).get(RUN_DIR),
                "start_ms": job.start_time,
                "end_ms": job.end_time,
                "entrypoint": job.entrypoint,
            }
            for job in jobs
        ]
        print_json(rows)
        return
    table = Table()
    table.add_column("job", no_wrap=True)
    for heading in ("status", "started (UTC)", "run directory or command"):
        table.add_column(heading, overflow="fold")
    for job in jobs:
        what = (job.metadata or {}).get(RUN_DIR) or job.entrypoint
        table.add_row(
            plain(job.submission_id),
            plain(job.status.value),
            _started(job.start_time),
            plain(what),
        )
    Console().print(table)


@jobs_app.command()
def logs(
    job: _Job,
    address: Address = None,
    follow: Annotated[
        bool, typer.Option("--follow/--no-follow", help="Until the job ends; its exit code.")
    ] = False,
) -> None:
    """Print a job's log.

    Example: causal jobs logs raysubmit_abc --follow
    """
    from ray_jobs.jobs.client import connect, explained, job_server_address
    from ray_jobs.jobs.follow import LogLines, follow_to_the_end

    url = job_server_address(address)
    client = connect(url)
    with explained(url):
        client.get_job_info(job)
    if follow:
        raise typer.Exit(follow_to_the_end(client, job))
    with explained(url):
        text = client.get_job_logs(job)
        if not isinstance(text, str):
            raise TypeError("a log that is no text")
    lines = LogLines(print)
    lines.take(text)
    lines.finish()


@jobs_app.command()
def stop(job: _Job, address: Address = None) -> None:
    """Stop a job: its run saves a checkpoint at the next step boundary and ends.

    Example: causal jobs stop raysubmit_abc
    """
    from ray_jobs.jobs.client import connect, explained, job_server_address

    url = job_server_address(address)
    client = connect(url)
    with explained(url):
        status = client.get_job_info(job).status
        if status.is_terminal():
            print(printable(f"{job} has ended already: {status.value}"))
            return
        client.stop_job(job)
    print(printable(f"{job} was asked to stop; its log says when: causal jobs logs {job} --follow"))
