"""First contact with a GPU, in one command: does everything work there, and how fast is it?

    python -m benchmarks.gpu_contact [--out DIR] [--budget 600] [--only PART ...] [--tiny]

Every part runs in a process of its own under a time limit, and after each the page (contact.md) and
all numbers (contact.json) are written anew: what failed or did not fit the budget is named there,
with its log, and the rest stands. Nothing is downloaded. --tiny runs all parts but the GPU tests on
a CPU with tiny shapes. Exits with 1 where a part failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.gpu_parts import SIZES
from benchmarks.machine import commit
from causal_core.files import write_whole
from causal_core.visible_text import shown

_ROOT = Path(__file__).resolve().parents[1]
_GRACE_SECONDS = 10.0  # between being asked to end and being ended
_LEAST_SECONDS = 5.0  # a part is not begun with less
LAYOUTS = ("rows", "flat", "compiled")
GIB = 2**30


@dataclass(frozen=True)
class Part:
    """One question, and the command that answers it."""

    name: str
    question: str
    command: list[str]
    limit: float  # seconds


@dataclass
class Outcome:
    """What a part found."""

    name: str
    status: str  # ok | failed | not run
    seconds: float
    why: str = ""
    found: Any = field(default_factory=dict)


def parts(out: Path, tiny: bool) -> list[Part]:
    """All parts in the order of their worth: a broken machine shows first."""
    python = [sys.executable, "-W", "ignore", "-m"]
    device = ["--tiny"] if tiny else []

    def own(name: str) -> list[str]:
        return [*python, "benchmarks.gpu_parts", name, str(out / f"{name}.json"), *device]

    tests = "tests/causal_core/test_gpu.py"
    config = str(_ROOT / "configs" / ("cpu.yaml" if tiny else "gpu-24gb.yaml"))
    return [
        Part("machine", "What is the device?", own("machine"), 60),
        Part("step-1B", "The step of a 1B", own("step-1B"), 90),
        Part(
            "tests", "Do the GPU tests pass?",
            [*python, "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", tests], 150,
        ),
        Part("resume", "Does an interrupted run lose nothing?", own("resume"), 90),
        Part("step-8B", "The step of an 8B", own("step-8B"), 120),
        Part("step-3B", "The step of a 3B", own("step-3B"), 100),
        Part("profile", "Where does a step's time go?", own("profile"), 90),
        Part(
            "doctor", "What does the doctor find?",
            [*python, "ray_jobs.cli", "doctor", config, f"run.dir={out / 'run'}", "--json"], 120,
        ),
    ]  # fmt: skip


def run_part(part: Part, out: Path, seconds: float) -> Outcome:
    """Runs one part in a process of its own for at most so many seconds."""
    log, file = out / f"{part.name}.log", out / f"{part.name}.json"
    file.unlink(missing_ok=True)
    begin = time.monotonic()
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            part.command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=_ROOT,
            env={**os.environ, "PYTHONPATH": str(_ROOT)}, start_new_session=True,
        )  # fmt: skip
        try:
            printed, _ = process.communicate(timeout=seconds)
            code: int | None = process.returncode
        except subprocess.TimeoutExpired:
            printed, code = _ended(process), None
        errors.write(printed)
    found = _found(file, printed)
    took = time.monotonic() - begin
    if code == 0:
        return Outcome(part.name, "ok", took, found=found)
    if code is None:
        return Outcome(part.name, "failed", took, f"no end within {seconds:.0f} s", found)
    return Outcome(part.name, "failed", took, f"exit code {code}: {_last_line(log)}", found)


def _ended(process: subprocess.Popen[str]) -> str:
    """Ends a process and those that it started, asked first so that they can clean up."""
    printed = None
    os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        printed, _ = process.communicate(timeout=_GRACE_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.communicate()[0] if printed is None else printed


def _found(file: Path, printed: str) -> Any:
    """What a part wrote, or printed as its last line of JSON."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        pass
    for line in reversed(printed.splitlines()):
        if line.startswith(("{", "[")):
            try:
                return json.loads(line)
            except ValueError:
                return {}
    return {"printed": printed.splitlines()[-3:]}


def _last_line(log: Path) -> str:
    lines = [
        line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()
    ]
    named = [line for line in lines if line.split(":")[0].endswith(("Error", "error", "failed"))]
    last = (named or [line for line in lines if line] or ["it said nothing"])[-1]
    return shown(last[:300])


def contact(chosen: Sequence[Part], out: Path, budget: float, console: Console) -> list[Outcome]:
    """Runs the parts one after the other and writes what is known after each."""
    outcomes: list[Outcome] = []
    begin = time.monotonic()
    for part in chosen:
        left = budget - (time.monotonic() - begin)
        if left < _LEAST_SECONDS:
            why = f"the budget of {budget:.0f} s was spent: --only {part.name} runs it"
            outcomes.append(Outcome(part.name, "not run", 0.0, why))
        else:
            with console.status(f"{part.name}: {part.question}"):
                outcomes.append(run_part(part, out, min(part.limit, left)))
        last = outcomes[-1]
        console.print(f"{last.name}: {last.status}, {last.seconds:.0f} s {last.why}", markup=False)
        write_whole(out / "contact.json", json.dumps([asdict(o) for o in outcomes], indent=1))
        write_whole(out / "contact.md", page(outcomes, {p.name: p.question for p in chosen}))
    return outcomes


def page(outcomes: Sequence[Outcome], questions: dict[str, str]) -> str:
    """The readable page."""
    found = {outcome.name: outcome.found for outcome in outcomes}
    machine = found.get("machine") or {}
    lines = ["# First contact with a GPU", "", f"commit {commit()}", ""]
    lines += _table(
        ("part", "question", "status", "seconds", ""),
        [
            (o.name, questions[o.name], o.status, f"{o.seconds:.0f}", o.why.replace("|", "/"))
            for o in outcomes
        ],
    )
    lines += ["", "What a part said is in its `.log` beside this page.", ""]
    lines += _machine(machine)
    lines += _steps(found, machine)
    lines += _resume(found.get("resume") or {})
    lines += _profile(found.get("profile") or {})
    lines += _doctor(found.get("doctor"))
    return "\n".join(lines) + "\n"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, *rows)]
    return [lines[0], "|" + "---|" * len(heads), *lines[1:]]


def _machine(found: dict[str, Any]) -> list[str]:
    if "device" not in found:
        return []
    rates = ", ".join(f"{k} {v / 1e12:.1f} TFLOP/s" for k, v in found.get("flops", {}).items())
    lines = [
        "## The device", "",
        f"{shown(found['device'])}, {found['memory_bytes'] / GIB:.1f} GiB; "
        f"torch {found.get('versions', {}).get('torch')}. Measured matrix products: {rates}.",
    ]  # fmt: skip
    if "copied_bytes_per_second" in found:
        lines[-1] += f" Memory: {found['copied_bytes_per_second'] / 1e9:,.0f} GB/s."
    if "peak_flops" in found:
        lines[-1] += f" Peak: {found['peak_flops'] / 1e12:.1f} TFLOP/s ({found['peak_source']})."
    return [*lines, ""]


def _steps(found: dict[str, Any], machine: dict[str, Any]) -> list[str]:
    rows = []
    for size in SIZES:
        job = found.get(f"step-{size}") or {}
        if "skipped" in job:
            rows.append((size, "all", job["skipped"], "", "", "", ""))
        for layout in LAYOUTS:
            measured = job.get(layout) or {}
            if why := measured.get("skipped") or measured.get("failed"):
                rows.append((size, layout, shown(why).replace("|", "/"), "", "", "", ""))
            elif measured.get("seconds"):
                rows.append((size, layout, *_of_step(job, measured, machine)))
    if not rows:
        return []
    heads = ("size", "layout", "s/step", "nodes/s", "of the peak", "planned MiB", "measured MiB")
    return [
        "## The optimizer step", "",
        "Random 4-bit weights, LoRA on seven projections, checkpointing, 16 triplets. The share of "
        "the peak counts what gradients of distinct tokens need, nothing that is computed again; "
        "memory is what torch allocates.", "",
        *_table(heads, rows), "",
    ]  # fmt: skip


def _of_step(
    job: dict[str, Any], measured: dict[str, Any], machine: dict[str, Any]
) -> tuple[str, ...]:
    seconds, memory = statistics.median(measured["seconds"]), measured["memory"]
    peak = machine.get("peak_flops")
    return (
        f"{seconds:.3f}",
        f"{job['nodes'] / seconds:,.0f}",
        f"{job['useful_flops'] / seconds / peak:.1%}" if peak else "?",
        f"{memory['predicted_bytes'] / 2**20:,.1f}" if "predicted_bytes" in memory else "?",
        f"{memory['measured_bytes'] / 2**20:,.1f}" if "measured_bytes" in memory else "?",
    )


def _resume(found: dict[str, Any]) -> list[str]:
    if "compared" not in found:
        return []
    rows = [
        (c["part"], f"{c['identical']} of {c['tensors']}", f"{c['largest_difference']:.1e}")
        for c in found["compared"]
    ]
    return ["## An interrupted run", "", *_table(("", "identical", "difference"), rows), ""]


def _profile(found: dict[str, Any]) -> list[str]:
    if "longest" not in found:
        return []
    busy = found["busy_seconds"]
    rows = [
        (f"`{item['name'].replace('|', '/')}`", f"{item['seconds'] / busy:.1%}")
        for item in found["longest"][:15]
    ]
    return [
        f"## {found['steps']} steps of a {found['size']}", "",
        f"{found['kernels']:,.0f} operations a step; the device was busy "
        f"{busy / found['seconds']:.0%} of {found['seconds']:.1f} s. All of it: `trace.json.gz` "
        "(chrome://tracing, perfetto.dev).", "",
        *_table(("operation", "of the busy time"), rows), "",
    ]  # fmt: skip


def _doctor(found: Any) -> list[str]:
    checks = found.get("checks", []) if isinstance(found, dict) else []
    bad = [
        (c["group"], c["name"], c["status"], shown(str(c.get("found", "")))[:200])
        for c in checks
        if c["status"] != "ok"
    ]
    if not checks:
        return []
    return [
        "## The doctor", "", f"{len(checks)} checks, {len(bad)} of them not ok.", "",
        *(_table(("group", "check", "status", "found"), bad) if bad else []), "",
    ]  # fmt: skip


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/gpu-contact"))
    parser.add_argument("--budget", type=float, default=600.0, help="seconds for all parts")
    parser.add_argument("--only", nargs="+", metavar="PART", help="these parts alone")
    parser.add_argument("--tiny", action="store_true", help="on CPU, with tiny shapes")
    given = parser.parse_args()
    out: Path = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    chosen = parts(out, given.tiny)
    names = [part.name for part in chosen]
    if unknown := set(given.only or ()) - set(names):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; known: {', '.join(names)}")
    chosen = [part for part in chosen if given.only is None or part.name in given.only]
    console = Console()
    outcomes = contact(chosen, out, given.budget, console)
    console.print(f"-> {out / 'contact.md'}", markup=False)
    sys.exit(any(outcome.status == "failed" for outcome in outcomes))


if __name__ == "__main__":
    main()
