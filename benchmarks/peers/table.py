"""The results as Markdown: a row a contender, and what was hoped for beside what came."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Result = Mapping[str, Any]
_HEAD = ("data", "objective", "way", "path tokens/s", "s / row", "ours is faster by",
         "peak MB", "ours has")  # fmt: skip


@dataclass(frozen=True)
class Goal:
    """A bound on how much faster ours is than one peer, or on its share of a peer's peak."""

    text: str
    data: str | None  # None: all
    peer: str | None
    least_speed: float | None = None
    most_peak: float | None = None


GOALS = (
    Goal("2 x TRL's padding-free SFT on built-in rows", "built-in", "TRL SFT", least_speed=2.0),
    Goal("4 x the same on long documents with 4 attacks", "long", "TRL SFT", least_speed=4.0),
    Goal("0.9 x with nothing shared", "unshared", None, least_speed=0.9),
    Goal("at most half of a peer's peak", None, None, most_peak=0.5),
)


def markdown(results: Sequence[Result]) -> str:
    """The newest measurement of each objective on each data set, and the goals."""
    newest: dict[str, Result] = {}
    for result in results:
        earlier = newest.get(result["data"], {"objectives": {}})["objectives"]
        objectives = {**earlier, **result["objectives"]}
        newest[result["data"]] = {**result, "objectives": objectives}
    lines = [_line(_HEAD), _line("---" for _ in _HEAD)]
    lines += [line for result in newest.values() for line in _rows(result)]
    lines += ["", _line(("goal", "came", "")), _line(("---", "---", "---"))]
    lines += [_line(judged(goal, list(newest.values()))) for goal in GOALS]
    return "\n".join(lines)


def ratios(contenders: Sequence[Result]) -> Iterator[tuple[Result, list[float], float]]:
    """Each peer with how much faster ours was in each repeat, and ours' share of its peak."""
    ours, *peers = contenders
    for peer in peers:
        faster = [b / a for a, b in zip(ours["seconds"], peer["seconds"], strict=True)]
        yield peer, faster, ours["peak_bytes"] / peer["peak_bytes"]


def judged(goal: Goal, results: Sequence[Result]) -> tuple[str, str, str]:
    """A goal, what came, and whether it is met everywhere."""
    found: list[tuple[float, str]] = []
    for result in results:
        if goal.data not in (None, result["data"]):
            continue
        for measured in result["objectives"].values():
            for peer, faster, peak in ratios(measured["contenders"]):
                if goal.peer is None or peer["title"].startswith(goal.peer):
                    value = statistics.median(faster) if goal.least_speed else peak
                    where = "" if goal.data else f" ({result['title']}, {peer['title']})"
                    found.append((value, where))
    if not found:
        return goal.text, "not measured", ""
    if goal.least_speed is not None:
        worst, where = min(found)
        met = sum(value >= goal.least_speed for value, _ in found)
        came = f"{worst:.2f} x{where}"
    else:
        assert goal.most_peak is not None
        worst, where = max(found)
        met = sum(value <= goal.most_peak for value, _ in found)
        came = f"{worst:.0%}{where}"
    if len(found) == 1:
        return goal.text, came, "met" if met else "missed"
    return goal.text, f"worst: {came}", f"met in {met} of {len(found)}"


def _rows(result: Result) -> Iterator[str]:
    for measured in result["objectives"].values():
        shared = measured["path_tokens"] / measured["nodes"]
        data = f"{result['title']}, {measured['rows']} rows, {shared:.2f} x shared"
        ours, *_ = measured["contenders"]
        yield _line((data, measured["terms"], *_way(measured, ours), "", _mega(ours), ""))
        for peer, faster, peak in ratios(measured["contenders"]):
            yield _line(
                ("", "", *_way(measured, peer), _spread(faster), _mega(peer), f"{peak:.0%}")
            )


def _way(measured: Result, contender: Result) -> tuple[str, str, str]:
    rates = [measured["path_tokens"] / seconds for seconds in contender["seconds"]]
    seconds = statistics.median(contender["seconds"]) / measured["rows"]
    batch = f", {contender['batch']} at a time" if contender["batch"] else ""
    return f"{contender['title']}{batch}", _spread(rates, 0), f"{seconds:.2f}"


def _mega(contender: Result) -> str:
    return f"{contender['peak_bytes'] / 1e6:,.0f}"


def _spread(values: Sequence[float], digits: int = 2) -> str:
    middle = f"{statistics.median(values):.{digits}f}"
    if len(values) == 1:
        return f"{middle} (once)"
    return f"{middle} ({min(values):.{digits}f} - {max(values):.{digits}f})"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
