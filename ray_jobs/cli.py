"""The `causal` command line. Heavy imports wait until a command runs, so that --help is quick."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from ray_jobs.attack_command import attack_command
from ray_jobs.console.answer import print_json
from ray_jobs.console.exit_codes import exit_with_code
from ray_jobs.console.help import WholeLines
from ray_jobs.data_command import data_app
from ray_jobs.evaluate_command import evaluate_command
from ray_jobs.export_command import export_command
from ray_jobs.guard_command import guard
from ray_jobs.init_command import init
from ray_jobs.jobs.client import Address
from ray_jobs.jobs.command import jobs_app
from ray_jobs.options import Json, RunDir
from ray_jobs.try_command import try_command

app = typer.Typer(
    help="Fine-tune open language models to resist prompt injection, on Ray.\n\n"
    "Exit codes: 0 ok, 1 the user's input cannot work, 2 wrong usage, 3 the run failed.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    cls=WholeLines,
)
app.add_typer(data_app, name="data")
app.add_typer(jobs_app, name="jobs")
app.command()(init)
app.command("try")(try_command)
app.command("export")(export_command)


def _given_config(path: Path | None) -> Path:
    """The config of a command that cannot do without; where to find one, if there is none."""
    if path is None:
        files = sorted(Path("configs").glob("*.yaml"))
        presets = ", ".join(str(file) for file in files if not file.name.startswith("tune-"))
        raise typer.BadParameter(
            "no config was given: causal init writes one for your model, data and GPU"
            + (f"; presets here: {presets}" if presets else "")
            + "; e.g. causal train causal.yaml"
        )
    return path


_Config = Annotated[
    Path,
    typer.Argument(
        metavar="CONFIG",
        help="YAML file; causal init writes one, configs/ has some to start from.",
        show_default=False,
        callback=_given_config,
    ),
]
_Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="key.sub=value...", help="Overrides, e.g. train.epochs=1"),
]


def _show_version(asked: bool) -> None:
    if asked:
        import causal_core

        print(f"causal-ray {causal_core.__version__}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_show_version, is_eager=True
        ),
    ] = False,
) -> None:
    """What stands before a command; the help text is the app's."""


def commands() -> Mapping[str, TyperCommand]:
    """The program's commands by name: how each is parsed is defined here and nowhere else."""
    program = get_command(app)
    assert isinstance(program, TyperGroup)
    return {k: c for k, c in program.commands.items() if isinstance(c, TyperCommand)}


@app.command()
def demo(
    directory: Annotated[
        Path, typer.Option("--dir", help="Where data, runs and report go.")
    ] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Of data and training.")] = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over; the old runs stay.")] = False,
) -> None:
    """Run the main job on built-in data and model: less than 10 minutes on two quiet CPU cores.

    Generates triplets, trains SmolLM2-135M-Instruct with and without the defence (side by side
    where cores and memory are enough), evaluates both beside the untrained model on attacks they
    have and have not seen, and writes report.html. Run again, it continues where it was.

    Example: causal demo --dir runs/demo
    """
    from ray_jobs.demo import run_demo

    run_demo(directory, seed=seed, fresh=fresh)


@app.command()
def plan(
    config: _Config = None,  # type: ignore[assignment]  # `_given_config` refuses none
    overrides: _Overrides = None,
    gpu_memory: Annotated[
        str | None, typer.Option(metavar="AMOUNT", help="Plan for this much memory, e.g. 24GiB.")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(metavar="NAME", help="Plan for this card, e.g. RTX4090.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what a run would do and need: steps, tokens, memory. Loads no weights, needs no GPU.

    Memory is planned without data, too. Exits with 1 when the run does not fit, and names the
    nearest config that does.

    Example: causal plan configs/gpu-24gb.yaml --gpu RTX4090
    """
    from ray_jobs.console.quiet import quiet_libraries
    from ray_jobs.plan.command import plan_command

    quiet_libraries()
    plan_command(config, overrides or (), gpu_memory, gpu, as_json)


@app.command()
def train(
    config: _Config = None,  # type: ignore[assignment]  # `_given_config` refuses none
    overrides: _Overrides = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over; the old run directory is renamed.")
    ] = False,
    test: Annotated[
        bool, typer.Option("--evaluate/--no-evaluate", help="Evaluate on the test sets after.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Train, evaluate and report. Run again, it resumes from the newest whole checkpoint.

    Example: causal train configs/cpu.yaml run.dir=runs/mine data.train=mine.jsonl
    """
    from causal_core.config_file import load_config
    from ray_jobs.training.process import worker_process

    resolved = load_config(config, overrides or ())
    with worker_process(resolved):  # it has as much to import as this process
        from ray_jobs.run import train_command

        train_command(resolved, fresh=fresh, test=test, as_json=as_json)


app.command("evaluate")(evaluate_command)
app.command("attack")(attack_command)
app.command()(guard)


@app.command()
def verify_resume(
    config: _Config = None,  # type: ignore[assignment]  # `_given_config` refuses none
    overrides: _Overrides = None,
    steps: Annotated[int, typer.Option(help="Optimizer steps of each of the two runs.")] = 6,
    as_json: Json = False,
) -> None:
    """Check that an interrupted run loses nothing: N steps against N/2 + restart + N/2.

    Exits with 3 when the final states are not bit-identical.

    Example: causal verify-resume configs/cpu.yaml --steps 6
    """
    from dataclasses import asdict

    from rich.console import Console

    from causal_core.config_file import load_config
    from causal_core.errors import RunFailedError
    from ray_jobs.console.quiet import quiet_libraries
    from ray_jobs.verify_resume import show_comparisons
    from ray_jobs.verify_resume import verify_resume as compare

    quiet_libraries()
    comparisons = compare(load_config(config, overrides or ()), steps)
    if as_json:
        print_json([{**asdict(c), "same": c.same} for c in comparisons])
    else:
        show_comparisons(Console(), comparisons, steps)
    if not all(c.same for c in comparisons):
        raise RunFailedError("the interrupted run ended in another state")


@app.command()
def report(
    run: RunDir,
    as_json: Json = False,
) -> None:
    """Write report.html of a run again from its files, and say where it is.

    With --json, print what the run's summary and its verdict say instead.

    Example: causal report runs/demo/defended
    """
    from dataclasses import asdict

    from causal_core.report.recorded import read_summary
    from causal_core.report.run_report import write_report
    from causal_core.report.verdict import verdict_of
    from causal_core.run.lock import only_writer
    from ray_jobs.console.plain import printable

    read_summary(run)  # what is no run gets no lock
    with only_writer(run, moved_by="a copy of the run elsewhere"):
        path = write_report(run)
    if not as_json:
        print(printable(path))
        return
    summary = read_summary(run)
    evaluated = summary.get("evaluation")
    verdict = asdict(verdict_of(evaluated)) if evaluated else None
    print_json({**summary, "verdict": verdict, "report": str(path)})


@app.command()
def submit(
    command: Annotated[
        list[str],
        typer.Argument(metavar="COMMAND", help="train, tune or evaluate, as on this machine."),
    ],
    address: Address = None,
    gpus: Annotated[
        int | None, typer.Option(min=0, help="Workers with one GPU each; default: the config's.")
    ] = None,
    runtime_env: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Dependencies for nodes that have Ray only: cluster/runtime-env.yaml.",
        ),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow/--no-follow", help="Show the log until the job ends.")
    ] = True,
) -> None:
    """Run a command, given after `--`, as a job on a Ray cluster; ends with the job's exit code.

    The code, the resolved config and data files named by relative paths are uploaded; everything
    else must be at an absolute path that every node reaches.

    Example: causal submit --gpus 8 -- train configs/gpu-24gb.yaml run.dir=/shared/runs/first
    """
    from ray_jobs.jobs.submit import submit_command

    raise typer.Exit(
        submit_command(
            command,
            address=address,
            gpus=gpus,
            runtime_env=runtime_env,
            follow_log=follow,
            commands=commands(),
        )
    )


@app.command()
def doctor(
    config: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG]", help="Whose paths and cluster to look at.")
    ] = None,
    overrides: _Overrides = None,
    engines: Annotated[
        bool, typer.Option("--engines/--no-engines", help="Run a micro job of every engine.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Check this machine: versions, devices, disk, storage, ports, and every engine by a job.

    Exits with 1 when a check failed; beside each stands what to do about it.

    Example: causal doctor configs/cpu.yaml run.dir=/mnt/shared/run
    """
    from rich.console import Console

    from causal_core.config_file import load_config
    from ray_jobs.console.quiet import quiet_libraries
    from ray_jobs.doctor.checks import diagnose, raise_for_failed, show_checks
    from ray_jobs.doctor.checks import report as report_of

    quiet_libraries()
    resolved = load_config(config, overrides or ())
    with Console(stderr=True).status("looking at this machine") as status:
        checks = diagnose(resolved, engines, lambda group: status.update(f"checking {group}"))
    if as_json:
        print_json(report_of(checks))
    else:
        show_checks(Console(), checks)
    raise_for_failed(checks)


def main() -> None:
    """The console script."""
    exit_with_code(lambda: app())


if __name__ == "__main__":
    main()
