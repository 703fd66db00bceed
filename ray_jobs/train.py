"""Entry point of a training job: `python -m ray_jobs.train --config FILE key.sub=value ...`.

`causal train` runs the same function, so a local run and a submitted one are one code path.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from ray_jobs.console.exit_codes import exit_with_code

log = logging.getLogger("ray_jobs.train")  # __name__ is "__main__" in a job


def train_command(
    config_path: Path | None,
    overrides: Sequence[str],
    *,
    fresh: bool = False,
    test: bool = True,
    as_json: bool = False,
) -> None:
    """Resolves the config, trains, evaluates, reports; prints what it came to."""
    from rich.console import Console

    from causal_core.config import run_directory
    from causal_core.config_file import load_config
    from ray_jobs.console.logs import configure_logs, event
    from ray_jobs.console.result import show_result
    from ray_jobs.run import run_training

    config = load_config(config_path, overrides)
    form = config.logging.format
    configure_logs(form, run=str(run_directory(config)))
    console = Console(stderr=as_json, quiet=form == "json")
    result = run_training(config, console, fresh=fresh, test=test)
    if as_json:
        print(json.dumps(result))
    else:
        show_result(console, run_directory(config), result)
    event(log, "run finished", **result["run"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line and leaves with the exit code of the outcome."""
    parser = argparse.ArgumentParser(prog="python -m ray_jobs.train", description=__doc__)
    parser.add_argument("--config", type=Path, help="YAML file; see configs/")
    parser.add_argument("--fresh", action="store_true", help="start over; the old run is kept")
    parser.add_argument("--no-evaluate", action="store_true", help="train only")
    parser.add_argument("--json", action="store_true", help="print summary.json at the end")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    options = parser.parse_args(arguments)
    exit_with_code(
        lambda: train_command(
            options.config,
            options.overrides,
            fresh=options.fresh,
            test=not options.no_evaluate,
            as_json=options.json,
        )
    )


if __name__ == "__main__":
    main()
