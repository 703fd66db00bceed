"""`causal submit`: a command of this program as a job on a Ray cluster.

Everything that can be known to fail is refused here, before anything is uploaded. The job runs the
same entry points as the local commands.
"""

from __future__ import annotations

import shlex
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from causal_core.config import Config
from causal_core.errors import RunFailedError, UserError
from ray_jobs.jobs.client import (
    cluster_nodes,
    connect,
    explained,
    exposure,
    job_server_address,
    unencrypted,
)
from ray_jobs.jobs.entrypoint import job_of
from ray_jobs.jobs.follow import (
    RUN_DIR,
    _say,
    follow_to_the_end,
)
from ray_jobs.jobs.packaging import JOB_CONFIG, pack
from ray_jobs.training.resources import Ask, describe_nodes, smallest_card, verdict

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient
    from typer.core import TyperCommand


# How long a head may take until it can run a job, and how often it is asked.
_AGENT_SECONDS, _AGENT_PAUSE_SECONDS = 60.0, 2.0

# Ray gives a stopped job 3 seconds by default; a run saves a checkpoint at the next step boundary.
_JOB_ENVIRONMENT = {
    "RAY_JOB_STOP_WAIT_TIME_S": "120",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
}


def submit_command(
    command: Sequence[str],
    *,
    address: str | None,
    gpus: int | None,
    runtime_env: Path | None,
    follow_log: bool,
    commands: Mapping[str, TyperCommand],
) -> int:
    """Validates, shows, uploads and submits; follows the log unless asked not to.

    Args:
        command: The command and its arguments, as on this machine.
        commands: The program's commands, by which they are parsed.

    Returns:
        The exit code of the job (0 when it is not followed).

    Raises:
        UserError: the command, config, paths, cluster or token cannot work.
        RunFailedError: the connection was lost for good.
    """
    job = job_of(command, commands, gpus)
    environment = _runtime_environment(runtime_env)
    if job.config is not None:
        _say("config", f"valid; writes {job.run_dir}")
    url = job_server_address(address)
    for warning in unencrypted(url):
        _say("warning", warning)
    client = connect(url)
    for warning in exposure(url):
        _say("warning", warning)
    nodes = [node["resources"] for node in cluster_nodes(url)]
    _say("cluster", f"{url}: {describe_nodes(nodes)}")
    if job.config is not None:
        ask = Ask.of(job.config)
        _say("asks for", str(ask))
        if (note := verdict(ask, nodes)) is not None:
            _say("note", note)
        _say("memory", planned_memory(job.config, smallest_card(nodes)))
    _refuse_second_writer(client, url, job.run_dir)
    with tempfile.TemporaryDirectory(prefix="causal-submit-") as folder:
        texts = {} if job.config is None else {JOB_CONFIG: job.yaml()}
        upload = pack(Path(folder) / "job.zip", texts, job.data)
        _say("upload", f"{upload}: " + ", ".join(["code", *texts, *map(str, job.data)]))
        environment["working_dir"] = str(upload.archive)
        identity = _submitted(
            client,
            url,
            entrypoint=shlex.join(job.entrypoint),
            runtime_env=environment,
            metadata={RUN_DIR: job.run_dir, "command": command[0]},
        )
    _say("job", identity)
    if not follow_log:
        _say("follow", f"causal jobs logs {identity} --follow")
        return 0
    return follow_to_the_end(client, identity)


def _submitted(client: JobSubmissionClient, url: str, **request: Any) -> str:
    """The new job's name. A head that has just started has no agent for jobs yet, and says so."""
    end = time.monotonic() + _AGENT_SECONDS
    while True:
        try:
            with explained(url):
                return str(client.submit_job(**request))
        except RunFailedError as error:
            if "no available agent" not in str(error).lower() or time.monotonic() > end:
                raise
        time.sleep(_AGENT_PAUSE_SECONDS)


def _runtime_environment(path: Path | None) -> dict[str, Any]:
    """The runtime environment file, with the variables that every job gets."""
    from causal_core.yaml_file import read_yaml

    environment: Any = {}
    if path is not None:
        environment = read_yaml(path)
        if not isinstance(environment, dict) or "working_dir" in environment:
            raise UserError(
                f"--runtime-env {path}: expected a mapping such as cluster/runtime-env.yaml, "
                "without working_dir (the upload takes its place)"
            )
    environment.pop("excludes", None)  # of the raw `ray job submit`; nothing else is uploaded here
    environment["env_vars"] = {**_JOB_ENVIRONMENT, **environment.get("env_vars", {})}
    return environment


def _refuse_second_writer(client: JobSubmissionClient, url: str, run_dir: str) -> None:
    with explained(url):
        jobs = client.list_jobs()
    for job in jobs:
        if (job.metadata or {}).get(RUN_DIR) == run_dir and not job.status.is_terminal():
            raise UserError(
                f"job {job.submission_id} is writing {run_dir} already: follow it (causal jobs "
                f"logs {job.submission_id} --follow), stop it, or give another run.dir"
            )


def planned_memory(config: Config, card: int | None) -> str:
    """What a worker will need, in words.

    Args:
        card: Bytes of a GPU of the cluster, where it is known; the config's own figure wins.

    Raises:
        UserError: a worker needs more than it will have.
    """
    from causal_core.amounts import gib
    from causal_core.memory import predict_run
    from ray_jobs.console.quiet import quiet_libraries

    quiet_libraries()
    resources = config.resources
    card = resources.gpu_memory_bytes or card
    planned = config.model_copy(deep=True)
    if resources.gpus_per_worker and card:
        planned.resources.gpu_memory = str(card)
    try:
        plan = predict_run(planned)
    except UserError as error:
        first = str(error).strip().splitlines()[0]
        return f"cannot be planned on this machine, the job does it: {first}"
    needed = f"{gib(plan.required_bytes)} per worker"
    if not resources.gpus_per_worker or card is None:
        return f"{needed}, as planned"
    share = round(card * min(1.0, resources.gpus_per_worker))
    if plan.required_bytes > share:
        raise UserError(
            f"a worker needs {gib(plan.required_bytes)} of GPU memory and will have {gib(share)}. "
            "causal plan CONFIG shows what would fit"
        )
    return f"{needed} of {gib(share)}, as planned"
