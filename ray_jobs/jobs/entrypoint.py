"""A command of this program as a job's entry point, checked before anything is sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from causal_core.config import Config
from causal_core.config_file import parse_config, read_tree
from causal_core.errors import ConfigError, UserError
from ray_jobs.jobs.packaging import JOB_CONFIG

if TYPE_CHECKING:
    from typer.core import TyperCommand

SUBMITTED = ("train", "tune", "evaluate")
PROGRAM = "tune_spaces.cli"
_KINDS = ("model:", "adapter:")  # of what stands in --against, beside run directories


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
    command: Sequence[str], commands: Mapping[str, TyperCommand], gpus: int | None = None
) -> Job:
    """Reads and validates the command of a job (`train CONFIG key=value ...`).

    Args:
        commands: Those that `causal` itself has, by name, which say how arguments are parsed: a
            job must not find out that it has no such command or option.

    Raises:
        UserError: an unknown command, a bad config, or paths that no node could read.
        TyperException: arguments that the command does not take.
    """
    if not command or command[0] not in SUBMITTED or command[0] not in commands:
        given = f"{command[0]!r} is no command" if command else "no command was given"
        raise UserError(
            f"{given} that can be submitted: causal submit [options] -- "
            f"{'|'.join(SUBMITTED)} ..., e.g. causal submit -- train configs/gpu-24gb.yaml "
            "run.dir=/shared/runs/first"
        )
    name, arguments = command[0], list(command[1:])
    parsed = commands[name].make_context(f"causal submit -- {name}", list(arguments))
    if name == "evaluate":
        return _evaluation(parsed.params, arguments, gpus)
    asked = [] if gpus is None else _gpu_overrides(gpus)
    file = parsed.params["config"]
    tree = read_tree(file, [*(parsed.params["overrides"] or ()), *asked])
    sweep = {"tune": tree.pop("tune")} if name == "tune" and "tune" in tree else {}
    if "tune" in tree:
        raise ConfigError(f"{file} describes a sweep: causal submit -- tune ...")
    config = parse_config(tree, str(file))
    config.ray.address = None  # the job is on its cluster already
    # The program of the commands above this package, which it must not import.
    module = ["-m", "ray_jobs.train", "--config"] if name == "train" else ["-m", PROGRAM, name]
    return Job(
        entrypoint=[
            "python",
            *module,
            JOB_CONFIG,
            *_flags(commands[name], parsed.params),
            # Not taken from the uploaded file: it came from this command line, so it goes by that.
            *(["model.trust_remote_code=true"] if config.model.trust_remote_code else []),
        ],
        run_dir=config.run.dir,
        config=config,
        sweep=sweep,
        data=_files_to_upload(config),
    )


def _flags(command: TyperCommand, given: Mapping[str, Any]) -> list[str]:
    """The switches (`--fresh`, `--no-evaluate`) that were given, as they are written."""
    switches = [p for p in command.params if p.param_type_name == "option" and p.name in given]
    return [
        (p.opts if given[p.name] else p.secondary_opts)[0]
        for p in switches
        if p.name is not None and given[p.name] != p.default
    ]


def _evaluation(given: Mapping[str, Any], arguments: list[str], gpus: int | None) -> Job:
    """What it reads and writes is where every node finds it; a model may be on a hub instead."""
    run, out = given["run"], given["out"]
    for what, path in (("the run directory", run), ("--out", out)):
        if path is not None:
            _must_be_on_every_node(what, str(path))
    if run is None and out is None:
        raise UserError(
            "--out: without a run directory, results would be thrown away with the job's own: give "
            "an absolute path on storage that every node reaches, e.g. --out /shared/evaluations/1"
        )
    for item in given["test"] or ():
        _must_be_on_every_node("--test", item.partition("=")[2])
    places = [("--model", f"model:{given['model']}"), ("--adapter", f"adapter:{given['adapter']}")]
    places = [place for place in places if given[place[0].removeprefix("--")] is not None]
    places += [("--against", item.partition("=")[2]) for item in given["against"] or ()]
    for what, place in places:
        if not place.startswith(_KINDS):
            _must_be_on_every_node("the run directory", place)
        elif Path(name := place.partition(":")[2]).is_dir() or name.startswith("."):
            _must_be_on_every_node(what, name)
    asked = [] if gpus is None else _gpu_overrides(gpus)
    settings = [word for item in asked for word in ("--set", item)]
    entrypoint = ["python", "-m", "ray_jobs.cli", "evaluate", *arguments, *settings]
    return Job(entrypoint, str(run if out is None else out))


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
    start = config.lora.init_from
    if start is not None and (Path(start).is_dir() or start.startswith(".")):
        _must_be_on_every_node("lora.init_from", start)
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
    named = [*(file.path for file in config.data.weighted_files()), *config.data.validation]
    named += [path for paths in config.data.test.values() for path in paths]
    given = {path.partition("#")[0] for path in named if not _is_everywhere(path)}
    files = {match for path in given for match in _matches(path)}
    for file in files:
        if ".." in Path(file).parts or not Path(file).exists():
            raise UserError(
                f"{file}: no such file below this directory. A relative data path is uploaded with "
                "the job; data that is on the cluster already needs an absolute path"
            )
    below = (Path(file).rglob("*") if Path(file).is_dir() else [Path(file)] for file in files)
    return sorted(path for paths in below for path in paths if path.is_file())


def _matches(path: str) -> list[str]:
    """The files that a pattern stands for; a name that is none, as it is."""
    from causal_core.data.sources import matching

    found = [] if Path(path).exists() else matching(Path(path))
    return [str(match) for match in found] or [path]


def _must_be_on_every_node(name: str, path: str) -> None:
    if not _is_everywhere(path):
        raise UserError(
            f"{name}={path} is relative, and a job's own directory is thrown away with the job: "
            "give an absolute path on storage that every node reaches, e.g. /shared/runs/first"
        )


def _is_everywhere(path: str) -> bool:
    return "://" in path or path.startswith(("/", "~"))
