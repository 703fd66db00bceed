"""A trained run as something to ask: `load(RUN).answer(system, input)`.

A run may be another's: what it holds is verified before it is used, its model's code never runs
unless the caller says so, and a hostile input is a text of the user's turn and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from causal_core.checkpoints.checkpoint import load_weights
from causal_core.checkpoints.contents import MANIFEST, verify_checkpoint
from causal_core.config import Config
from causal_core.config_file import recorded_config
from causal_core.device import at_least_float32, share_cores
from causal_core.errors import ForeignCheckpointError, UserError
from causal_core.evaluation.generation import end_tokens
from causal_core.evaluation.guard_file import FOLDER, WEIGHTS, Guard, read_guard
from causal_core.evaluation.representations import HEAD
from causal_core.files import BEST
from causal_core.model.causal_model import CausalModel, build_model
from causal_core.model.lora import without_adapter
from causal_core.pretrained.loading import (
    base_fingerprint,
    load_base,
    model_limits,
    resolve_model,
)
from causal_core.tokens.prompts import PromptEncoder
from causal_core.tokens.run_data import load_encoder
from causal_core.visible_text import shown

MOST_NEW_TOKENS = 256
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what half of a character decodes to


def load(
    run: str | Path,
    *,
    trust_remote_code: bool = False,
    device: str | torch.device | None = None,
) -> TrainedModel:
    """Loads the best checkpoint of a run, or a checkpoint directory, with its base model.

    Args:
        trust_remote_code: Run Python code that ships with the base model, which you have read.
        device: None: a GPU where there is one.

    Raises:
        UserError: no checkpoint there, a damaged one, or another base model than it was trained on.
    """
    checkpoint = checkpoint_of(Path(run))
    manifest = verify_checkpoint(checkpoint)
    # The checkpoint's own config, which its manifest vouches for.
    config = recorded_config(checkpoint, trust_remote_code)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if place.type == "cpu":
        share_cores()
    encoder = load_encoder(config)
    base = load_base(config.model, place)
    source = resolve_model(config.model)
    if base_fingerprint(source, base) != manifest.base_fingerprint:
        raise ForeignCheckpointError(
            f"{shown(str(checkpoint))} was trained on another model than {shown(source)} is now: "
            "put that one back there, or restore model.name_or_path in a copy of the run"
        )
    model = build_model(base, config.lora, config.run.seed)
    load_weights(checkpoint, model)
    guard = checkpoint.parent / FOLDER / WEIGHTS
    return TrainedModel(config, encoder, model.eval(), place, guard, manifest.weights())


def checkpoint_of(run: Path) -> Path:
    """The checkpoint that a run's directory offers: its best; a checkpoint offers itself."""
    if (run / BEST).is_dir():
        return run / BEST
    if (run / MANIFEST).is_file():
        return run
    raise UserError(
        f"{shown(str(run))} has no {BEST}/, so there is no trained model in it: give the directory "
        "of a run that has ended (causal train), or that of a checkpoint"
    )


@dataclass(frozen=True)
class Suspicion:
    """How much a prompt looks like an attacked one to the detector of its run."""

    score: float  # higher is more suspicious; of no unit
    threshold: float  # as `causal guard` set it

    @property
    def suspected(self) -> bool:
        return self.score >= self.threshold


@dataclass(frozen=True)
class TrainedModel:
    """A base model with the adapter and the head that a run trained."""

    config: Config
    encoder: PromptEncoder
    model: CausalModel
    device: torch.device
    guard_file: Path  # where `causal guard` leaves the run's detector
    weights: str  # which adapter and head these are

    def answer(
        self,
        system: str,
        user_input: str,
        context: str | None = None,
        *,
        max_new_tokens: int = MOST_NEW_TOKENS,
        defended: bool = True,
    ) -> str:
        """The most likely answer, word by word; what the model says is untrusted text.

        Args:
            context: Text before the input in the user's turn, after which comes a blank line.
            defended: False asks the base model, without what was trained.

        Raises:
            UserError: something else than text, or a prompt that the model has no room for.
        """
        return "".join(
            self.stream(
                system, user_input, context, max_new_tokens=max_new_tokens, defended=defended
            )
        )

    def stream(
        self,
        system: str,
        user_input: str,
        context: str | None = None,
        *,
        max_new_tokens: int = MOST_NEW_TOKENS,
        defended: bool = True,
    ) -> Iterator[str]:
        """`answer` in the pieces in which it comes; streams may take turns."""
        prompt = self._prompt(system, user_input, context, max_new_tokens)
        return self._pieces(prompt, max_new_tokens, defended)

    def suspicion(self, system: str, user_input: str, context: str | None = None) -> Suspicion:
        """What the run's detector says of a prompt: one forward over it, and no answer.

        Raises:
            UserError: no detector was fitted on these weights, or a prompt without room.
        """
        guard = self._guard
        prompt = self._prompt(system, user_input, context, 0)
        hidden, _, _ = self._forward(prompt, None, True)
        return self._judged(guard, hidden)

    def answer_with_suspicion(
        self,
        system: str,
        user_input: str,
        context: str | None = None,
        *,
        max_new_tokens: int = MOST_NEW_TOKENS,
    ) -> tuple[str, Suspicion]:
        """`answer` with `suspicion`, read off the forward that the answer begins with."""
        guard = self._guard
        prompt = self._prompt(system, user_input, context, max_new_tokens)
        read: list[Suspicion] = []
        tokens = self._tokens(
            prompt, max_new_tokens, True, lambda hidden: read.append(self._judged(guard, hidden))
        )
        answer = self.encoder.decode(list(tokens))
        return answer, read[0]

    @cached_property
    def _guard(self) -> Guard:
        """The detector that belongs to these weights (`UserError` where there is none)."""
        run = shown(str(self.guard_file.parent.parent))
        how = f"fit one with causal guard {run} (docs/guard.md says what it is worth)"
        try:
            guard = read_guard(self.guard_file)
        except FileNotFoundError:
            raise UserError(f"no detector was fitted on {run}: {how}") from None
        if guard.weights != self.weights:
            raise UserError(
                f"{shown(str(self.guard_file))} was fitted on other weights than these: {how}"
            )
        if len(guard.read_out.weight) != self.model.projection.input.in_features:
            raise UserError(
                f"{shown(str(self.guard_file))} has {len(guard.read_out.weight):,} numbers, the "
                f"model is {self.model.projection.input.in_features:,} wide: {how}"
            )
        return guard

    @torch.no_grad()
    def _judged(self, guard: Guard, hidden_1NH: Tensor) -> Suspicion:
        """By the last hidden states of a whole prompt, pooled as training and `causal guard` do."""
        pooled = at_least_float32(hidden_1NH).mean(1)
        vector = self.model.projection(pooled) if guard.kind == HEAD else pooled
        [score] = guard.read_out.scores(vector.double().cpu().numpy())
        return Suspicion(float(score), guard.read_out.threshold)

    def _prompt(self, system: str, user_input: str, context: str | None, answer: int) -> list[int]:
        """The tokens to answer, of what was given (`UserError` where that is no prompt)."""
        given = {"system": system, "user_input": user_input, "context": context or ""}
        for name, text in given.items():
            if not isinstance(text, str):
                raise UserError(
                    f"{name}: expected text, found {type(text).__name__} (no system instruction "
                    'is "", and messages are given as their texts)'
                )
        if not isinstance(answer, int) or answer < 0:
            raise UserError(f"max_new_tokens: expected a whole number from 0 on, found {answer!r}")
        prompt = self.encoder.prompt_ids(system, user_input, context)
        self._refuse_too_long(len(prompt), answer)
        return prompt

    def _refuse_too_long(self, prompt: int, answer: int) -> None:
        room = model_limits(self.config.model).positions
        if room is not None and prompt + answer > room:
            raise UserError(
                f"the prompt has {prompt:,} tokens and the answer may have {answer:,}, the model "
                f"has room for {room:,} (max_position_embeddings): shorten the input, or ask for "
                "fewer new tokens"
            )

    def _pieces(self, prompt: Sequence[int], limit: int, defended: bool) -> Iterator[str]:
        # The template's lead (an empty thinking block) is no part of the answer: until it may have
        # ended there is nothing to say.
        lead = len(self.encoder.tokenizer(self.encoder.template.lead).input_ids)
        ids: list[int] = []
        said = ""
        for token in self._tokens(prompt, limit, defended):
            ids.append(token)
            text = self.encoder.decode(ids)
            if len(ids) > lead and text.startswith(said) and not text.endswith(_INCOMPLETE):
                yield text[len(said) :]
                said = text
        yield self.encoder.decode(ids)[len(said) :]

    @torch.no_grad()
    def _tokens(
        self,
        prompt: Sequence[int],
        limit: int,
        defended: bool,
        read: Callable[[Tensor], None] | None = None,
    ) -> Iterator[int]:
        """Greedy tokens after a prompt, up to an end token.

        Args:
            read: Receives the prompt's last hidden states, [1, N, H].
        """
        ends = end_tokens(self.model.peft_model.get_base_model(), self.encoder.end_of_answer)
        hidden, token, cache = self._forward(prompt, None, defended)
        if read is not None:
            read(hidden)
        for number in range(1, limit + 1):
            if token in ends:
                return
            yield token
            if number < limit:
                _, token, cache = self._forward([token], cache, defended)

    @torch.no_grad()
    def _forward(self, ids: Sequence[int], cache: Any, defended: bool) -> tuple[Tensor, int, Any]:
        """Last hidden states of tokens after those of the cache, the next token, and the cache.

        The adapter is switched for each forward alone, so that two streams can take turns.
        """
        decoder = self.model.peft_model.get_base_model().get_decoder()
        new = torch.tensor([list(ids)], device=self.device)
        with nullcontext() if defended else without_adapter(self.model):
            output = decoder(input_ids=new, past_key_values=cache, use_cache=True)
            token = int(self.model.logits(output.last_hidden_state[:, -1:]).argmax(-1))
        return output.last_hidden_state, token, output.past_key_values
