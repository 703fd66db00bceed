"""From last hidden states to logits by the model's own code.

Between the decoder and the logits architectures scale (Granite, Cohere), cap (Gemma 2) or do
nothing; a list of such options would miss the next one. Here the model's own `forward` runs on
hidden states that are already there: on a second object of its class that shares its modules, but
has in the decoder's place one that hands through what it is given.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from causal_core.errors import ModelError

if TYPE_CHECKING:
    from transformers.modeling_outputs import MoeModelOutputWithPast


class _Given(nn.Module):
    """In the place of a decoder: its result is what it is given as embeddings."""

    calls = 0

    def forward(self, *args: Any, inputs_embeds: Tensor, **options: Any) -> MoeModelOutputWithPast:
        from transformers.modeling_outputs import MoeModelOutputWithPast

        self.calls += 1
        return MoeModelOutputWithPast(last_hidden_state=inputs_embeds)  # type: ignore[arg-type]


class OutputTail:
    """Last hidden states [..., H] -> logits [..., V].

    Args:
        base: A causal language model of transformers; its output layer stays shared.

    Raises:
        ModelError: its forward is not "decoder, then logits".
    """

    def __init__(self, base: Any) -> None:
        self._model = copy.copy(base)
        self._given = _Given()
        decoder = base.get_decoder()
        places = [n for n, child in base._modules.items() if decoder in set(child.modules())]
        if len(places) != 1 or decoder is base.get_output_embeddings():
            raise self._not_separable()
        self._model._modules = {**base._modules, places[0]: self._given}

    def __call__(self, hidden: Tensor) -> Tensor:
        before = self._given.calls
        try:
            # One sequence: models that look at its length or batch see an ordinary one.
            output = type(self._model).forward(
                self._model, inputs_embeds=hidden.reshape(1, -1, hidden.shape[-1]), use_cache=False
            )
        except (TypeError, AttributeError) as error:
            raise self._not_separable() from error
        logits: Tensor = output.logits
        if self._given.calls != before + 1 or logits.shape[1] != hidden[..., 0].numel():
            raise self._not_separable()
        return logits.reshape(*hidden.shape[:-1], -1)

    def _not_separable(self) -> ModelError:
        return ModelError(
            f"{type(self._model).__name__} does not compute its logits from the last hidden states "
            "of its decoder in a way that can be called by itself, which training on labels alone "
            "needs: use one of the architectures in docs/models.md"
        )
