"""A suffix found by gradients: tokens after the attack that make its target likelier.

Greedy coordinate gradient (Zou et al., 2023): the gradient of the target's log-probability with
respect to the suffix's embeddings says which tokens might help at each place; some of them are
tried, all in one prefix tree of S, U, the attack and the suffixes, and the best replaces the suffix
where it is better. What is scored is text: a suffix that would be read back as other tokens is no
attack. A level is the number of steps; level 0 is the attack with a suffix of no meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from random import Random
from typing import Any, ClassVar

import torch
from torch import Tensor

from causal_core.attack.kit import Choice, bare_kit
from causal_core.attack.target import Progress, RowAttack, Target
from causal_core.data.schema import Triplet
from causal_core.device import at_least_float32

STEPS = (0, 25, 50, 100)
LONGEST = 12  # tokens of a suffix
_KEPT = 64  # tokens that the gradient suggests at each place
_TRIED = 24  # suffixes of a step
_STARTS = 200  # attempts at a suffix that reads back as itself
TUNED_ON = 8  # rows that a universal suffix is tuned on


@dataclass
class RowSuffix(RowAttack):
    """What is known of one row."""

    suffix: list[int] = field(default_factory=list)
    score: float | None = None  # mean log-probability of a token of the target, with the suffix
    steps: int = 0


@dataclass(frozen=True)
class Problem:
    """One row under attack: the text before the suffix, and the target."""

    row: Triplet
    head: str
    wanted: str


@dataclass
class _Before:
    """Keys and values of what stands before the suffix, good while that and the weights stay."""

    ids: list[int] = field(default_factory=list)
    cache: Any = None


@dataclass(frozen=True)
class SuffixTuner:
    """What every attack by suffixes does: a problem for each row, steps, and answers."""

    target: Target
    seed: int

    def _judge(self, asked: Sequence[tuple[RowSuffix, Problem, str]], level: int) -> None:
        prompts = [self.target.prompt(problem.row, text) for _, problem, text in asked]
        for (state, problem, text), answer in zip(asked, self.target.answers(prompts), strict=True):
            state.judge(level, text, problem.wanted, answer)

    def _problem(self, row: Triplet, rows: Sequence[Triplet]) -> Problem:
        kit = bare_kit()
        rng = Random(f"{self.seed}/{row.id}/suffix")
        choice = Choice(0, rng.randrange(kit.sizes[1]), 0, 0, rng.randrange(kit.sizes[4]))
        return Problem(row, *kit.candidate(row, rows, choice, self.seed))

    def _bring(self, state: RowSuffix, problems: Sequence[Problem], level: int, name: str) -> None:
        """Steps until there are `level` of them."""
        if not state.suffix:
            state.suffix = self._start(problems[0], Random(f"{self.seed}/{name}/start"))
            state.score = self._scores(problems, [state.suffix])[0]
        before = [_Before() for _ in problems]
        while state.steps < level:
            rng = Random(f"{self.seed}/{name}/{state.steps}")
            tried = self._candidates(problems, before, state.suffix, rng)
            state.steps += 1
            if not tried:
                continue
            scores = self._scores(problems, tried)
            state.queries += len(tried) * len(problems)
            best = max(range(len(tried)), key=lambda i: (scores[i], -i))
            if state.score is None or scores[best] > state.score:
                state.suffix, state.score = tried[best], scores[best]

    def _scores(self, problems: Sequence[Problem], suffixes: Sequence[list[int]]) -> list[float]:
        """Of each suffix, the mean over problems."""
        totals = [0.0] * len(suffixes)
        for problem in problems:
            texts = [(self._text(problem, suffix), problem.wanted) for suffix in suffixes]
            for i, score in enumerate(self.target.scores(problem.row, texts)):
                totals[i] += score / len(problems)
        return totals

    def _text(self, problem: Problem, suffix: Sequence[int]) -> str:
        return f"{problem.head} {self.target.encoder.tokenizer.decode(suffix)}"

    def _place(self, problem: Problem, suffix: list[int]) -> tuple[list[int], int] | None:
        """The prompt, and where the suffix begins in it; None where it reads back as another."""
        prompt = self.target.prompt(problem.row, self._text(problem, suffix))
        for start in range(len(prompt) - len(suffix), -1, -1):
            if prompt[start : start + len(suffix)] == suffix:
                return prompt, start
        return None

    def _start(self, problem: Problem, rng: Random) -> list[int]:
        """A suffix to begin with: one token again and again, or any tokens that read back."""
        tokenizer = self.target.encoder.tokenizer
        plain = [
            tokenizer(text, add_special_tokens=False)["input_ids"][-1] for text in (" !", " x", "!")
        ]
        for attempt in range(_STARTS):
            if attempt < len(plain):
                suffix = [plain[attempt]] * LONGEST
            else:
                suffix = [self._allowed_list[rng.randrange(len(self._allowed_list))]
                          for _ in range(LONGEST)]  # fmt: skip
            if self._place(problem, suffix) is not None:
                return suffix
        return [plain[0]] * LONGEST

    def _candidates(
        self,
        problems: Sequence[Problem],
        before: Sequence[_Before],
        suffix: list[int],
        rng: Random,
    ) -> list[list[int]]:
        """Suffixes that differ in one token, by what the gradient suggests."""
        of_each = zip(problems, before, strict=True)
        gains = [gain for p, b in of_each if (gain := self._gain(p, b, suffix)) is not None]
        if not gains:
            return []
        best = torch.stack(gains).sum(0).topk(min(_KEPT, len(self._allowed)), dim=1).indices
        tried: dict[tuple[int, ...], None] = {}
        for _ in range(4 * _TRIED):
            place = rng.randrange(len(suffix))
            token = int(self._allowed[best[place, rng.randrange(best.shape[1])]])
            new = [*suffix[:place], token, *suffix[place + 1 :]]
            if new != suffix and tuple(new) not in tried and self._place(problems[0], new):
                tried[tuple(new)] = None
            if len(tried) == _TRIED:
                break
        return [list(new) for new in tried]

    def _gain(self, problem: Problem, before: _Before, suffix: list[int]) -> Tensor | None:
        """[L, A]: how much the target's log-probability would rise, to first order, with each
        allowed token at each place of the suffix."""
        found = self._place(problem, suffix)
        if found is None:
            return None
        prompt, start = found
        model, device = self.target.model, self.target.device
        base: Any = model.peft_model.get_base_model()
        answer = self.target.encoder.answer_ids(problem.wanted)
        embedding = base.get_input_embeddings()
        was_training = model.training
        model.eval()
        with torch.enable_grad(), self.target.searching():
            cache = self._cache_of(prompt[:start], before)
            fixed = embedding(torch.tensor([*prompt[start:], *answer[:-1]], device=device)).detach()
            own = fixed[: len(suffix)].clone().requires_grad_()
            logits = base(
                inputs_embeds=torch.cat([own, fixed[len(suffix) :]])[None],
                past_key_values=cache,
                use_cache=cache is not None,
                logits_to_keep=len(answer),
            ).logits[0]
            log_p = at_least_float32(logits).log_softmax(-1)
            wanted = torch.tensor(answer, device=device)
            (gradient,) = torch.autograd.grad(log_p.gather(1, wanted[:, None]).mean(), own)
        model.train(was_training)
        vocabulary = at_least_float32(embedding.weight.detach())
        return (at_least_float32(gradient) @ vocabulary.T)[:, self._allowed.to(device)].cpu()

    @torch.no_grad()
    def _cache_of(self, ids: list[int], before: _Before) -> Any:
        """Keys and values of the prompt's beginning, for one forward after it; None if it is
        empty."""
        if ids and before.ids != ids:
            decoder = self.target.model.peft_model.get_base_model().get_decoder()
            new = torch.tensor([ids], device=self.target.device)
            before.cache = decoder(input_ids=new, use_cache=True).past_key_values
            before.ids = ids
        return deepcopy(before.cache) if ids else None  # a forward adds its own to what it is given

    @cached_property
    def _allowed(self) -> Tensor:
        """Tokens that can be written: ordinary, printable, and read back as themselves."""
        encoder = self.target.encoder
        tokens = [i for i in range(len(encoder.tokenizer)) if i not in encoder.control_ids]
        texts = encoder.tokenizer.batch_decode([[i] for i in tokens])
        fine = [
            (token, text)
            for token, text in zip(tokens, texts, strict=True)
            if text.strip() and text.isprintable() and "\ufffd" not in text
        ]
        read = encoder.tokenizer([text for _, text in fine], add_special_tokens=False)["input_ids"]
        return torch.tensor(
            [token for (token, _), ids in zip(fine, read, strict=True) if list(ids) == [token]]
        )

    @cached_property
    def _allowed_list(self) -> list[int]:
        return [int(token) for token in self._allowed]


@dataclass(frozen=True)
class SuffixSearch(SuffixTuner):
    """A suffix of its own for every row (see `Attacker`)."""

    record: ClassVar[type[RowAttack]] = RowSuffix

    def begin(self, rows: Sequence[Triplet]) -> list[RowSuffix]:
        """The rows before any step, with their clean answers."""
        return self.target.begun(RowSuffix, rows)

    def spend(
        self,
        rows: Sequence[Triplet],
        found: Sequence[RowSuffix],
        level: int,
        progress: Progress | None = None,
    ) -> None:
        """Brings every row up to `level` steps and answers its best attack."""
        asked: list[tuple[RowSuffix, Problem, str]] = []
        for row, state in zip(rows, found, strict=True):
            if state.broken_at is None:
                problem = self._problem(row, rows)
                self._bring(state, [problem], level, row.id)
                asked.append((state, problem, self._text(problem, state.suffix)))
            if progress is not None:
                progress()
        self._judge(asked, level)


@dataclass(frozen=True)
class UniversalSuffix(SuffixSearch):
    """One suffix for all rows, tuned on others."""

    tuning: Sequence[Triplet] = ()

    def spend(
        self,
        rows: Sequence[Triplet],
        found: Sequence[RowSuffix],
        level: int,
        progress: Progress | None = None,
    ) -> None:
        """Brings the suffix up to `level` steps on the tuning rows and answers all rows with it."""
        tuned = list(self.tuning[:TUNED_ON])
        problems = [self._problem(row, self.tuning) for row in tuned]
        # The one suffix stands in every row's record.
        state = RowSuffix("universal", suffix=found[0].suffix, score=found[0].score,
                          steps=found[0].steps)  # fmt: skip
        self._bring(state, problems, level, "universal")
        asked = []
        for row, own in zip(rows, found, strict=True):
            own.suffix, own.score, own.steps = state.suffix, state.score, state.steps
            own.queries += state.queries
            if own.broken_at is None:
                problem = self._problem(row, rows)
                asked.append((own, problem, self._text(problem, state.suffix)))
            if progress is not None:
                progress()
        self._judge(asked, level)
