"""A command of this program as a job's entry point, checked before anything is sent."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from causal_core.config import Config
from causal_core.config_file import parse_config, read_tree
from causal_core.errors import ConfigError, UserError
from ray_jobs.jobs.packaging import JOB_CONFIG

COMMANDS = ("train", "tune", "evaluate")
PROGRAM = "tune_spaces.cli"


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


def job_of(
    command: Sequence[str], gpus: int | None = None, known: Collection[str] = COMMANDS
) -> Job:
    """Reads and validates the command of a job (`train CONFIG key=value ...`).

    Args:
        known: What `causal` itself can do: a job must not find out that it cannot.

    Raises:
        UserError: an unknown command, bad arguments or config, or paths that no node could read.
    """
    if not command or command[0] not in COMMANDS or command[0] not in known:
        given = f"{command[0]!r} is no command" if command else "no command was given"
        raise UserError(
            f"{given} that can be submitted: causal submit [options] -- "
            f"{'|'.join(COMMANDS)} ..., e.g. causal submit -- train configs/gpu-24gb.yaml "
            "run.dir=/shared/runs/first"
        )
    name, arguments = command[0], command[1:]
    return _evaluation(arguments) if name == "evaluate" else _run(name, arguments, gpus)


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


class _Arguments(argparse.ArgumentParser):
    """Raises instead of leaving: the command line has one way out (`exit_codes`)."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}")
