"""The run report: one self-contained HTML file made from what a run directory holds.

The way of the data: run directory -> `_Run` (what is there) -> template context -> page. Training
text is hostile by nature: `html.render` makes every value visible and escapes it, and no text ever
becomes a template.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from causal_core.evaluation.metrics import METRIC, TEST_METRICS, TRAINED, reference_model
from causal_core.files import METRICS_FILE, PERFORMANCE_FILE, read_records, write_whole
from causal_core.report import evaluation_section as evaluation
from causal_core.report import training_section as training
from causal_core.report.attacks import CAVEAT, read_attacks
from causal_core.report.attacks import sections as attack_sections
from causal_core.report.html import render
from causal_core.report.recorded import read_summary
from causal_core.report.verdict import rows_compared, verdict_of

REPORT = "report.html"

MEMORY_TOLERANCE = 0.10  # of the measurement: a plan further off is worth a note


@dataclass(frozen=True)
class _Run:
    """What a run directory holds, as far as it is there."""

    directory: Path
    status: str
    facts: dict[str, Any]
    config: dict[str, Any]
    evaluation: dict[str, Any] | None
    train: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    performance: list[dict[str, Any]]
    attacks: list[dict[str, Any]]


def write_report(run_directory: Path) -> Path:
    """Writes `report.html` into a run directory, whole or not at all, and returns its path.

    Raises:
        UserError: the directory has no `summary.json` that can be read as one.
        UnwritableError: the report cannot be written there.
    """
    run = _read(run_directory)
    return write_whole(run_directory / REPORT, render(f"{REPORT}.j2", _context(run)))


def write_evaluation_report(
    directory: Path, evaluated: dict[str, Any], facts: Mapping[str, str]
) -> Path:
    """Writes `report.html` of an evaluation that is of no run's record, whole or not at all.

    Args:
        evaluated: As the section `evaluation` of summary.json.
        facts: What was evaluated, to show at the top.
    """
    context = {
        **_evaluation_context(evaluated),
        "kind": "Evaluation",
        "title": directory.resolve().name,
        "facts": list(facts.items()),
        "notes": [],
        "trains": False,
        "attacks": [],
    }
    return write_whole(directory / REPORT, render(f"{REPORT}.j2", context))


def _read(directory: Path) -> _Run:
    summary = read_summary(directory)
    evaluated = summary.get("evaluation")
    if evaluated and TRAINED not in (evaluated.get("models") or {}):
        evaluated = None
    records = read_records(directory / METRICS_FILE)
    return _Run(
        directory=directory,
        status=str(summary.get("status") or "unknown"),
        facts=summary.get("run") or {},
        config=summary.get("config") or {},
        evaluation=evaluated or None,
        train=[r for r in records if r.get("kind") == "train"],
        validation=[r for r in records if r.get("kind") == "validation"],
        performance=read_records(directory / PERFORMANCE_FILE),
        attacks=read_attacks(directory),
    )


def _context(run: _Run) -> dict[str, Any]:
    return {
        **_evaluation_context(run.evaluation),
        "kind": "Run report",
        "title": run.directory.resolve().name,
        "facts": _fact_list(run),
        "notes": _notes(run),
        "trains": True,
        "attacks": attack_sections(run.attacks),
        "attack_caveat": CAVEAT,
        "loss_charts": training.loss_charts(run.train, run.config),
        "validation_charts": training.validation_charts(run.validation, run.facts.get("best_step")),
        "collapse": training.collapse(run.validation),
        "speed": training.speed(run.performance),
        "speed_charts": training.speed_charts(run.performance),
        "config": yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True),
    }


def _evaluation_context(evaluated: dict[str, Any] | None) -> dict[str, Any]:
    """What the page shows of an evaluation, if there was one."""
    models = evaluated["models"] if evaluated else {}
    held = (evaluated or {}).get("examples") or []
    order = sorted(models, key=lambda m: ({"base": 0, "control": 1, TRAINED: 3}.get(m, 2), m))
    return {
        "attack_success": METRIC["attack_success"],
        "verdict": verdict_of(evaluated) if evaluated else None,
        "models": [
            {"name": m, "description": (evaluated or {}).get("descriptions", {}).get(m, "")}
            for m in order
        ],
        "attack_charts": evaluation.attack_charts(models, order),
        "tables": evaluation.tables(models, order, rows_compared(evaluated or {})),
        "reference": reference_model(order) if TRAINED in models else None,
        "families": evaluation.family_tables(models, order),
        "metrics": TEST_METRICS,
        "targets": evaluation.targets(models),
        "examples": evaluation.examples(held, order),
        "examples_held": len(held),
    }


def _fact_list(run: _Run) -> list[tuple[str, str]]:
    facts, model = run.facts, run.config.get("model") or {}
    parameters = facts.get("parameters") or {}
    trained = sum(parameters.get(k) or 0 for k in ("adapter", "projection"))
    return [
        ("Model", str(model.get("name_or_path", "not recorded"))),
        ("Trained parameters", f"{trained:,} of {sum(parameters.values()):,}" if trained else "—"),
        ("Optimizer steps", f"{_count(facts, 'steps')} of {_count(facts, 'planned_steps')}"),
        ("Triplets seen", _count(facts, "samples")),
        ("Epochs", _count(facts, "epochs")),
        ("Best step", _count(facts, "best_step")),
        ("Workers", _count(facts, "workers")),
        ("Time", _duration(facts.get("seconds"))),
        ("Peak memory", _bytes(facts.get("peak_memory_bytes"))),
        *_planned_memory(facts.get("memory")),
    ]


def _planned_memory(memory: object) -> list[tuple[str, str]]:
    """What was planned beside what was measured; nothing where nothing was measured."""
    if not isinstance(memory, Mapping) or "measured_bytes" not in memory:
        return []
    rows = [("Memory measured (allocated)", _bytes(memory["measured_bytes"]))]
    if "predicted_bytes" in memory:
        error = memory.get("error")
        off = f" ({error:+.1%})" if isinstance(error, int | float) else ""
        rows.append(("Memory planned (allocated)", _bytes(memory["predicted_bytes"]) + off))
    return rows


def _notes(run: _Run) -> list[str]:
    notes = []
    steps, planned = run.facts.get("steps"), run.facts.get("planned_steps")
    if run.status != "finished":
        notes.append(f"The run's status is “{run.status}”: the numbers below are not final.")
    elif isinstance(steps, int) and isinstance(planned, int) and steps < planned:
        notes.append(f"The run stopped after {steps} of {planned} planned steps.")
    memory = run.facts.get("memory")
    error = memory.get("error") if isinstance(memory, Mapping) else None
    if isinstance(error, int | float) and abs(error) > MEMORY_TOLERANCE:
        notes.append(
            f"Memory was planned {error:+.0%} off what was measured: keep that margin when you "
            "choose micro-batches for this model."
        )
    if skipped := run.facts.get("skipped_steps"):
        steps_were = "step was" if skipped == 1 else "steps were"
        notes.append(f"{skipped} optimizer {steps_were} skipped: loss or gradient not finite.")
    return notes


def _count(facts: Mapping[str, Any], key: str) -> str:
    value = facts.get(key)
    return f"{value:,}" if isinstance(value, int) else "—"


def _duration(seconds: object) -> str:
    if not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return "—"
    hours, rest = divmod(round(seconds), 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {left} s"


def _bytes(count: object) -> str:
    """Bytes in GiB; 0 is what a device reports that does not measure."""
    if not isinstance(count, int | float) or not count:
        return "not measured"
    return f"{count / 2**30:.2f} GiB"
