"""`causal submit`: a command of this program as a job on a Ray cluster.

Everything that can be known to fail is refused here, before anything is uploaded. The job runs the
same entry points as the local commands.
"""

from __future__ import annotations

import argparse
import functools
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from causal_core.config import Config
from causal_core.config_file import parse_config, read_tree
from causal_core.errors import ConfigError, UserError
from ray_jobs.cluster_resources import Ask, describe_nodes, smallest_card, verdict
from ray_jobs.follow import LogLines, exit_code, follow, printable
from ray_jobs.job_client import cluster_nodes, connect, explained, exposure, job_server_address
from ray_jobs.packaging import JOB_CONFIG, pack

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

COMMANDS = ("train", "tune", "evaluate")
PROGRAM = "tune_spaces.cli"
RUN_DIR = "run_dir"  # metadata of a job: which run directory it writes

# Ray gives a stopped job 3 seconds by default; a run saves a checkpoint at the next step boundary.
_JOB_ENVIRONMENT = {
    "RAY_JOB_STOP_WAIT_TIME_S": "120",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
}


@dataclass
class Job:
    """What will be submitted."""

    entrypoint: list[str]
    run_dir: str
    config: Config | None = None  # the one that is uploaded
    sweep: dict[str, Any] = field(default_factory=dict)  # the section `tune` beside it
    data: list[Path] = field(default_factory=list)  # files that are uploaded

    def yaml(self) -> str:
        """The file that is uploaded."""
        import yaml

        assert self.config is not None
        rest = yaml.safe_dump(self.sweep, sort_keys=False) if self.sweep else ""
        return self.config.to_yaml() + rest


def submit_command(
    command: Sequence[str],
    *,
    address: str | None,
    gpus: int | None,
    runtime_env: Path | None,
    follow_log: bool,
) -> int:
    """Validates, shows, uploads and submits; follows the log unless asked not to.

    Returns:
        The exit code of the job (0 when it is not followed).

    Raises:
        UserError: the command, config, paths, cluster or token cannot work.
        RunFailedError: the connection was lost for good.
    """
    job = job_of(command, gpus)
    environment = _runtime_environment(runtime_env)
    if job.config is not None:
        _say("config", f"valid; writes {job.run_dir}")
    url = job_server_address(address)
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
        with explained(url):
            identity = client.submit_job(
                entrypoint=shlex.join(job.entrypoint),
                runtime_env=environment,
                metadata={RUN_DIR: job.run_dir, "command": command[0]},
            )
    _say("job", identity)
    if not follow_log:
        _say("follow", f"causal jobs logs {identity} --follow")
        return 0
    return follow_to_the_end(client, identity)


def follow_to_the_end(client: JobSubmissionClient, identity: str) -> int:
    """Follows a job and returns its exit code; Ctrl-C asks whether to detach or to stop it."""
    lines = LogLines(functools.partial(print, flush=True))
    while True:
        try:
            details = follow(client, identity, lines)
        except KeyboardInterrupt:
            answer = _ask_on_interrupt()
            if answer == "detach":
                _say("detached", f"the job goes on; causal jobs logs {identity} --follow")
                return 0
            if answer == "stop":
                _say("stopping", "the run saves a checkpoint at the next step boundary")
                with explained(client.get_address()):
                    client.stop_job(identity)
            continue
        code = exit_code(details)
        _say("outcome", f"{details.status.value}, exit code {code}")
        if code and details.driver_exit_code is None and details.message:
            _say("reason", "\n".join(map(printable, details.message.strip().splitlines())))
        return code


def job_of(command: Sequence[str], gpus: int | None = None) -> Job:
    """Reads and validates the command of a job (`train CONFIG key=value ...`).

    Raises:
        UserError: an unknown command, bad arguments or config, or paths that no node could read.
    """
    if not command or command[0] not in COMMANDS or command[0] not in _known_commands():
        given = f"{command[0]!r} is no command" if command else "no command was given"
        raise UserError(
            f"{given} that can be submitted: causal submit [options] -- "
            f"{'|'.join(COMMANDS)} ..., e.g. causal submit -- train configs/gpu-24gb.yaml "
            "run.dir=/shared/runs/first"
        )
    name, arguments = command[0], command[1:]
    return _evaluation(arguments) if name == "evaluate" else _run(name, arguments, gpus)


def _known_commands() -> set[str]:
    """What `causal` itself can do: a job must not find out that it cannot."""
    from ray_jobs.cli import app

    named = ((command.name, command.callback) for command in app.registered_commands)
    return {name or (callback.__name__ if callback else "") for name, callback in named}


def _run(name: str, arguments: Sequence[str], gpus: int | None) -> Job:
    parser = _Arguments(prog=f"causal submit -- {name}", add_help=False)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*")
    flags = {"--fresh": "store_true"}
    if name == "train":
        flags["--no-evaluate"] = "store_true"
    for flag, action in flags.items():
        parser.add_argument(flag, action=action)
    options = parser.parse_intermixed_args(arguments)
    asked = [] if gpus is None else _gpu_overrides(gpus)
    tree = read_tree(options.config, [*options.overrides, *asked])
    sweep = {"tune": tree.pop("tune")} if name == "tune" and "tune" in tree else {}
    if "tune" in tree:
        raise ConfigError(f"{options.config} describes a sweep: causal submit -- tune ...")
    config = parse_config(tree, str(options.config))
    config.ray.address = None  # the job is on its cluster already
    passed = [flag for flag in flags if getattr(options, flag[2:].replace("-", "_"))]
    # The program of the commands above this package, which it must not import.
    module = ["-m", "ray_jobs.train", "--config"] if name == "train" else ["-m", PROGRAM, name]
    return Job(
        entrypoint=["python", *module, JOB_CONFIG, *passed],
        run_dir=config.run.dir,
        config=config,
        sweep=sweep,
        data=_files_to_upload(config),
    )


def _evaluation(arguments: Sequence[str]) -> Job:
    parser = _Arguments(prog="causal submit -- evaluate", add_help=False)
    parser.add_argument("run")
    parser.add_argument("--against", action="append", default=[])
    parser.add_argument("--limit", type=int)
    options = parser.parse_intermixed_args(arguments)
    for path in (options.run, *(item.partition("=")[2] for item in options.against)):
        _must_be_on_every_node("the run directory", path)
    return Job(["python", "-m", "ray_jobs.cli", "evaluate", *arguments], options.run)


def _gpu_overrides(gpus: int) -> list[str]:
    if gpus == 0:
        return ["resources.gpus_per_worker=0"]
    return [f"resources.workers={gpus}", "resources.gpus_per_worker=1"]


def _files_to_upload(config: Config) -> list[Path]:
    """The data files named by a relative path; they travel along.

    Raises:
        UserError: one does not exist, or leads out of this directory; or a path that must be the
            same on every node is relative.
    """
    _must_be_on_every_node("run.dir", config.run.dir)
    for name, path in (
        ("checkpoint.storage", config.checkpoint.storage),
        ("data.cache_dir", config.data.cache_dir),
    ):
        if path is not None:
            _must_be_on_every_node(name, path)
    model = Path(config.model.name_or_path)
    if not model.is_absolute() and model.is_dir():
        raise UserError(
            f"model.name_or_path={model} is a directory of this machine; models are not uploaded. "
            "Put it on storage that every node reaches and give its absolute path, or use a hub id"
        )
    if config.resources.max_workers == 0 and config.resources.gpus_per_worker > 0:
        raise ConfigError(
            "resources.workers=0 runs in the job's own process, which holds no GPU: set "
            "resources.workers=1"
        )
    named = [*config.data.train, *config.data.validation]
    named += [path for paths in config.data.test.values() for path in paths]
    files = {path.partition("#")[0] for path in named if not _is_everywhere(path)}
    for file in files:
        if ".." in Path(file).parts or not Path(file).is_file():
            raise UserError(
                f"{file}: no such file below this directory. A relative data path is uploaded with "
                "the job; data that is on the cluster already needs an absolute path"
            )
    return sorted(map(Path, files))


def _must_be_on_every_node(name: str, path: str) -> None:
    if not _is_everywhere(path):
        raise UserError(
            f"{name}={path} is relative, and a job's own directory is thrown away with the job: "
            "give an absolute path on storage that every node reaches, e.g. /shared/runs/first"
        )


def _is_everywhere(path: str) -> bool:
    return "://" in path or path.startswith(("/", "~"))


def _runtime_environment(path: Path | None) -> dict[str, Any]:
    """The runtime environment file, with the variables that every job gets."""
    import yaml

    environment: Any = {}
    if path is not None:
        try:
            environment = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise UserError(f"--runtime-env {path}: {error}") from error
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


def _ask_on_interrupt() -> str:
    """`detach`, `stop` or `go on`."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return "detach"
    answers = {"d": "detach", "s": "stop", "c": "go on"}
    while True:
        try:
            print("\n[d]etach and let the job run, [s]top the job, [c]ontinue? ", end="",
                  file=sys.stderr, flush=True)  # fmt: skip
            answer = sys.stdin.readline()
        except KeyboardInterrupt:
            return "detach"
        if not answer:  # the terminal is gone
            return "detach"
        if (choice := answers.get(answer.strip().lower()[:1])) is not None:
            return choice


def planned_memory(config: Config, card: int | None) -> str:
    """What a worker will need, in words.

    Args:
        card: Bytes of a GPU of the cluster, where it is known; the config's own figure wins.

    Raises:
        UserError: a worker needs more than it will have.
    """
    from causal_core.memory import predict
    from causal_core.memory.units import gib
    from ray_jobs.quiet import quiet_libraries

    quiet_libraries()
    resources = config.resources
    card = resources.gpu_memory_bytes or card
    planned = config.model_copy(deep=True)
    if resources.gpus_per_worker and card:
        planned.resources.gpu_memory = str(card)
    try:
        plan = predict(planned)
    except UserError as error:
        first = str(error).strip().splitlines()[0]
        return f"cannot be planned on this machine, the job does it: {first}"
    needed = f"{gib(plan.required_bytes)} a worker"
    if not resources.gpus_per_worker or card is None:
        return f"{needed}, as planned"
    share = round(card * min(1.0, resources.gpus_per_worker))
    if plan.required_bytes > share:
        raise UserError(
            f"a worker needs {gib(plan.required_bytes)} of GPU memory and will have {gib(share)}. "
            "causal plan CONFIG shows what would fit"
        )
    return f"{needed} of {gib(share)}, as planned"


def _say(what: str, text: str) -> None:
    print(f"{what:<9} {text}", flush=True)


class _Arguments(argparse.ArgumentParser):
    """Raises instead of leaving: the command line has one way out (`exit_codes`)."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}")
