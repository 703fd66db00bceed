"""An evaluation of a model that says what a test has it say."""

from __future__ import annotations

from collections.abc import Callable

ONE_PASS = "causal_core.evaluation.one_pass"


def evaluation_says(monkeypatch, answers: Callable[..., list[list[int]]]) -> None:
    """`answers`, in place of `greedy_answers`, is asked for all that scores do not give."""
    monkeypatch.setattr(f"{ONE_PASS}.rotated_otherwise", lambda *_: "scores first, then answers")
    monkeypatch.setattr(f"{ONE_PASS}.greedy_answers", answers)
