"""Scores of triplets and the answers that the scores do not give, each prompt computed once.

The forwards that score have computed the prompts already: answers go on from their keys and values,
so that a prompt is not computed again to be answered. What a forward has kept is freed once its
prompts are among the answers in progress, and the next one runs when there is room for more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch

from causal_core.evaluation.generation import (
    CACHE_BYTES,
    Started,
    decode,
    end_tokens,
    greedy_answers,
    rotated_otherwise,
)
from causal_core.evaluation.own_margin import OwnMargins
from causal_core.evaluation.scoring import Forward, Scores, Scoring, score_triplets
from causal_core.model.causal_model import CausalModel
from causal_core.tokens.triplet import TripletTokens
from causal_core.trees.needs import BENIGN, BRANCHES, INJECTION

Question = tuple[int, bool]  # a triplet's position, and whether its attacked prompt is meant
Answers = dict[Question, list[int]]


@torch.no_grad()
def scored_and_answered(
    model: CausalModel,
    triplets: Sequence[TripletTokens],
    first: Sequence[bool],
    device: torch.device,
    *,
    head_trained: bool,
    end_of_answer: int,
    max_new_tokens: int,
    batch_tokens: int,
    progress: Callable[[int], None] | None = None,
    cache_bytes: int = CACHE_BYTES,
    own_margin: bool = False,
) -> tuple[Scores, Answers]:
    """`score_triplets`, and `greedy_answers` to those prompts of which the scores do not show that
    the answer is exactly the right one: clean ones of a row's first triplet, attacked ones of all.

    Args:
        progress: Called with the number of triplets scored after each forward.
        own_margin: Fill in the scores' `own_margin` and `own_margin_whole`.
    """
    prompts = {
        (position, attacked): prompt
        for position, triplet in enumerate(triplets)
        for attacked, prompt in _prompts(triplet, first[position])
    }
    longest = max(map(len, prompts.values()), default=0) + max_new_tokens
    answers: Answers = {}
    keeps = rotated_otherwise(model, longest) is None
    branches = BRANCHES if head_trained else (BENIGN, INJECTION)
    scoring = Scoring(model, triplets, device, batch_tokens, branches, keep=True) if keeps else None
    own = None
    if own_margin:
        limits = (batch_tokens, end_of_answer, max_new_tokens)
        own = OwnMargins(model, triplets, first, scoring, device, *limits)
    if scoring is None:
        scores = score_triplets(
            model, triplets, device, batch_tokens, head_trained, first, progress
        )
    else:
        waiting = _Questions(model, scoring, prompts, device, progress, own)
        ends = end_tokens(model.peft_model.get_base_model(), end_of_answer)
        most = (batch_tokens, cache_bytes)
        was_training = model.training
        model.eval()
        try:
            for number, answer in decode(model, waiting, ends, max_new_tokens, longest, most):
                answers.update((question, list(answer)) for question in waiting.asked[number])
                if own is not None:
                    own.look(answers)
        finally:
            model.train(was_training)
        scores = scoring.scores(first)
    exact = {False: scores.benign_exact, True: scores.attacked_exact}
    left = [q for q in prompts if q not in answers and not exact[q[1]][q[0]]]
    generated = greedy_answers(
        model,
        [prompts[question] for question in left],
        end_of_answer=end_of_answer,
        max_new_tokens=max_new_tokens,
        batch_tokens=batch_tokens,
        device=device,
        cache_bytes=cache_bytes,
    )
    answers.update(zip(left, generated, strict=True))
    if own is not None:
        margin, whole = own.margins(answers, scores.benign_exact)
        scores = replace(scores, own_margin=margin, own_margin_whole=whole)
    return scores, answers


def _prompts(triplet: TripletTokens, first: bool) -> Iterator[tuple[bool, list[int]]]:
    if first:
        yield False, [*triplet.system, *triplet.benign]
    if triplet.injections:
        yield True, [*triplet.system, *triplet.only.prompt]


class _Questions:
    """Prompts in the order of the forwards that score them (`generation.Waiting`)."""

    def __init__(
        self,
        model: CausalModel,
        scoring: Scoring,
        prompts: dict[Question, list[int]],
        device: torch.device,
        progress: Callable[[int], None] | None,
        own: OwnMargins | None,
    ) -> None:
        self._model, self._scoring, self._prompts, self.device = model, scoring, prompts, device
        self._progress, self.count, self._own = progress, len(prompts), own
        self._forwards = scoring.forwards()
        self._started: deque[Started] = deque()
        self._numbers: dict[tuple[int, ...], int] = {}  # equal prompts have one answer
        self.asked: list[list[Question]] = []  # by the number of a prompt

    def next(self) -> Started | None:
        """The next prompt that is to be answered; None after the last."""
        while not self._started:
            if not self._score_more():
                return None
        return self._started.popleft()

    def _score_more(self) -> bool:
        """Runs the next forward; whether there was one."""
        forward = next(self._forwards, None)
        if forward is None:
            return False
        if self._progress is not None:
            self._progress(len(forward.owners))
        if self._own is not None:
            self._own.keep(forward)
        self._started.extend(self._start(forward))
        return True

    def _start(self, forward: Forward) -> list[Started]:
        found: list[tuple[int, int, torch.Tensor, int]] = []
        for branch in (BENIGN, INJECTION):
            for owner, row, path, slot in forward.paths(branch):
                question = (owner, branch == INJECTION)
                if question not in self._prompts or self._scoring.exact(*question):
                    continue
                # Nothing is predicted after a prompt without a reference: it is asked again.
                if slot is not None and self._is_new(question):
                    found.append((len(self.asked) - 1, row, path, slot))
        if not found:
            return []
        hidden = forward.output.label_hidden[[slot for *_, slot in found]]
        tokens = self._model.logits(hidden).argmax(-1).tolist()
        return [
            Started(number, forward.output.kept, row, path, token)
            for (number, row, path, _), token in zip(found, tokens, strict=True)
        ]

    def _is_new(self, question: Question) -> bool:
        """Gives its prompt a number, unless an equal one has one."""
        prompt = tuple(self._prompts[question])
        number = self._numbers.get(prompt)
        if number is not None:
            self.asked[number].append(question)
            return False
        self._numbers[prompt] = len(self.asked)
        self.asked.append([question])
        return True
