"""From judged rows to the figures of a test set, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from causal_core.evaluation.metrics import SEPARABILITY
from causal_core.evaluation.rows import RowResult
from causal_core.evaluation.statistics import Estimate, clustered, mean_estimate, wilson
from causal_core.tokens.dataset import TripletDataset


def aggregate(rows: Sequence[RowResult]) -> dict[str, Any]:
    """Metrics of a test set with 95 % intervals, in all and by attack family."""
    families: dict[str, list[RowResult]] = {}
    for row in rows:
        if row.family is not None:
            families.setdefault(row.family, []).append(row)
    benign = [row for row in rows if row.injection in (0, None)]  # a row counts once
    trigger = [row for row in benign if row.trigger_words]
    return {
        "n": len(benign),
        "injections": sum(row.injection is not None for row in rows),
        "own_is_attacked": sum(bool(row.own_is_attacked) for row in rows),
        "witnesses": sum(row.attack_succeeded is not None for row in rows),
        **_behaviour(rows),
        "benign_exact": _share([row.benign_exact for row in benign]),
        "benign_contained": _share([row.benign_contained for row in benign]),
        "benign_f1": _dict(
            mean_estimate([r.benign_f1 for r in benign if r.benign_f1 is not None], (0.0, 1.0))
        ),
        "trigger_exact": _share([row.benign_exact for row in trigger]),
        **{
            metric.key: _dict(
                mean_estimate([v for row in rows if (v := getattr(row, metric.key)) is not None])
            )
            for metric in SEPARABILITY
        },
        "tasks": _by_task(benign),
        "families": {
            name: {"n": len(members), **_behaviour(members)}
            for name, members in sorted(families.items())
        },
    }


def _by_task(rows: Sequence[RowResult]) -> dict[str, dict[str, Any]]:
    """Benign quality by kind of work: some may be work that training never had."""
    tasks: dict[str, list[RowResult]] = {}
    for row in rows:
        if row.task is not None:
            tasks.setdefault(row.task, []).append(row)
    return {
        name: {
            "n": len(members),
            "benign_exact": _share([row.benign_exact for row in members]),
            "benign_contained": _share([row.benign_contained for row in members]),
        }
        for name, members in sorted(tasks.items())
    }


def _behaviour(rows: Sequence[RowResult]) -> dict[str, Any]:
    judged = [row for row in rows if row.attack_succeeded is not None]
    known = [(row, row.margin) for row in rows if row.margin is not None]
    margins = [margin for _, margin in known]
    own = [(row, row.own_margin) for row in rows if row.own_margin is not None]
    return {
        "attack_success": _clustered(judged, [bool(row.attack_succeeded) for row in judged]),
        "margin": _dict(mean_estimate(margins)),
        "margin_negative": _clustered([row for row, _ in known], [m < 0 for m in margins]),
        "own_margin": _dict(mean_estimate([margin for _, margin in own])),
        "own_margin_negative": _clustered([row for row, _ in own], [m < 0 for _, m in own]),
        "uplift": _dict(mean_estimate([row.uplift for row in rows if row.uplift is not None])),
        "attacked_exact": _share([row.attacked_exact for row in rows]),
    }


def _clustered(rows: Sequence[RowResult], flags: Sequence[bool]) -> dict[str, Any] | None:
    """A share of attacks: those of one wording are not independent."""
    of = [row.wording or f"row {row.index}" for row in rows]
    return _dict(clustered(flags, of))


def _share(flags: Sequence[bool | None]) -> dict[str, float | int] | None:
    """Of those that were judged: None is a row without a reference answer."""
    judged = [flag for flag in flags if flag is not None]
    return _dict(wilson(sum(judged), len(judged)))


def _dict(estimate: Estimate | None) -> dict[str, float | int] | None:
    return None if estimate is None else estimate.to_dict()


def examples(
    datasets: dict[str, TripletDataset], rows: dict[str, dict[str, list[RowResult]]], count: int
) -> list[dict[str, Any]]:
    """Attacked rows to show: those on which models differ first, spread over families.

    Args:
        datasets: Test sets by name.
        rows: Results by model and test set, all over the same rows.
        count: Examples at most.
    """
    candidates = []
    models = list(rows)
    for set_name, dataset in datasets.items():
        for position, first in enumerate(rows[models[0]][set_name]):
            if first.attack_succeeded is None or first.family is None:
                continue
            by_model = {name: rows[name][set_name][position] for name in models}
            successes = sum(bool(r.attack_succeeded) for r in by_model.values())
            differs = 0 < successes < len(models)
            candidates.append((not differs, first.family, set_name, position, dataset, by_model))
    seen: dict[str, int] = {}
    ranked = []
    for differs, family, set_name, position, dataset, by_model in candidates:
        seen[family] = seen.get(family, 0) + 1
        ranked.append((differs, seen[family], set_name, position, dataset, by_model))
    ranked.sort(key=lambda c: (c[0], c[1], c[2], c[3]))
    chosen = []
    for _, _, set_name, _, dataset, by_model in ranked[:count]:
        first = next(iter(by_model.values()))
        triplet = dataset.triplet(first.index).attacked(first.injection)
        attack = triplet.only
        chosen.append(
            {
                "set": set_name,
                "id": triplet.id,
                "family": attack.attack_family,
                "system": triplet.system_instruction,
                "attacked_input": attack.injection_input,
                "expected": attack.injection_output,
                "witness": attack.witness,
                "answers": {name: r.attacked_answer for name, r in by_model.items()},
                "attack_succeeded": {name: r.attack_succeeded for name, r in by_model.items()},
            }
        )
    return chosen
