"""Log records: one JSON object a line where asked for, nothing extra elsewhere."""

from __future__ import annotations

import json
import logging

import pytest

from ray_jobs.console.logs import configure_logs, event, say_error
from ray_jobs.training.prometheus import EXPORTED, PrometheusTracker

log = logging.getLogger("ray_jobs.somewhere")


@pytest.fixture(autouse=True)
def as_before():
    loggers = [logging.getLogger(name) for name in ("causal_core", "ray_jobs", "tune_spaces")]
    before = [(x, x.handlers[:], x.propagate, x.level) for x in loggers]
    yield
    for logger, handlers, propagate, level in before:
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


def test_json_lines_carry_context_values_and_exceptions(capsys):
    configure_logs("json", run="/shared/run", rank=1)
    event(log, "progress", done=3, total=9)
    try:
        raise ValueError("two\nlines")
    except ValueError:
        log.exception("broken %s", "thing")
    say_error("run failed", RuntimeError("why"))
    progress, broken, last = map(json.loads, capsys.readouterr().err.splitlines())
    assert progress["message"] == "progress" and progress["done"] == 3 and progress["rank"] == 1
    assert progress["time"].endswith("+00:00") and progress["level"] == "info"
    assert broken["message"] == "broken thing" and "two\nlines" in broken["exception"]
    assert last["message"] == "run failed: why" and last["run"] == "/shared/run"


def test_text_lines_have_no_events_and_are_said_once(capsys):
    configure_logs("text", run="/shared/run")
    configure_logs("text", run="/shared/run")
    event(log, "progress", done=3)
    log.warning("look here")
    say_error("error", RuntimeError("why"))
    assert capsys.readouterr().err.splitlines() == ["WARNING look here", "error: why"]


def test_scalars_of_the_run_log_become_metrics(monkeypatch):
    from ray.util.metrics import Counter, Gauge

    seen: list[tuple[str, float]] = []
    monkeypatch.setattr(Gauge, "set", lambda self, value: seen.append((self.info["name"], value)))
    monkeypatch.setattr(Counter, "inc", lambda self: seen.append((self.info["name"], 1)))
    tracker = PrometheusTracker("first")
    tracker.scalars({"performance/seconds": 0.5, "train/unknown": 7.0}, 3)
    tracker.scalars({"train/loss": 2.0, "train/skipped": True}, 4)
    tracker.close()
    assert seen == [
        ("causal_step", 3),
        ("causal_step_seconds", 0.5),
        ("causal_step", 4),
        ("causal_loss", 2.0),
        ("causal_skipped_steps", 1),
    ]
    assert EXPORTED["train/skipped"][0] == "causal_skipped_steps_total"  # Ray adds the ending
