"""Fake delimiters: a turn of its own inside the input, in the tokens nearest to the template's.

The template's control tokens cannot be written in an input; ordinary tokens whose embeddings lie
nearest to theirs can. Each literal of the template (the end of a turn, the beginning of another) is
written with such look-alikes in place of its control tokens, as Chen et al. (StruQ, 2024) and their
successors attack delimiters that a defence reserves.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from causal_core.attack.kit import Kit, bare_kit
from causal_core.attack.target import Target
from causal_core.device import at_least_float32
from causal_core.errors import UserError

_LOOK_ALIKES = 8
_LOOKED_AT = 256  # nearest tokens, of which not all can be written
_DONE = "Done."  # what the fake turn before answers


@torch.no_grad()
def delimiter_kit(target: Target) -> Kit:
    """The kit whose wrappers are fake turns (`UserError`: the template has no control token)."""
    t = target.encoder.template
    after = t.after + t.lead
    forms = [
        f"{after}{_DONE}{t.next_turn}{{payload}}",
        f"{after}{_DONE}{t.next_turn}{{payload}}{t.after}",
        f"{after}{_DONE}{t.tail}{t.before}{{payload}}{t.between}",
        f"{t.before}{{payload}}{t.between}",
    ]
    written = sorted(
        (text for text in target.encoder.markers if _id_of(target, text) is not None),
        key=len,
        reverse=True,
    )
    used = [text for text in written if any(text in form for form in forms)]
    if not used:
        raise UserError(
            "the chat template of this model has no control tokens, so there are none to write "
            "look-alikes of: attack with --kind words or suffix"
        )
    near = {text: nearest_texts(target, text, _LOOK_ALIKES) for text in used}
    wrappers = []
    for rank in range(_LOOK_ALIKES):
        for form in forms:
            for text in used:
                if near[text]:
                    form = form.replace(text, near[text][rank % len(near[text])])
            wrappers.append(form)
    return bare_kit(tuple(dict.fromkeys(wrappers)))


def nearest_texts(target: Target, control: str, count: int) -> list[str]:
    """Texts of the ordinary tokens nearest (cosine) to a control token's embedding, nearest first.

    Only what an input can hold: a text that the tokenizer makes the same token of.
    """
    tokenizer, base = target.encoder.tokenizer, target.model.peft_model.get_base_model()
    weight = at_least_float32(base.get_input_embeddings().weight.detach())
    own = _id_of(target, control)
    near = F.cosine_similarity(weight, weight[own][None], dim=-1)
    found: list[str] = []
    for token in near.topk(min(_LOOKED_AT, len(near))).indices.tolist():
        if token in target.encoder.control_ids or token >= len(tokenizer):
            continue
        text = tokenizer.decode([token])
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if text.strip() and text.isprintable() and "\ufffd" not in text and token in ids:
            found.append(text)
        if len(found) == count:
            break
    return found


def _id_of(target: Target, text: str) -> int | None:
    """The control token that a text is; None where it is none."""
    token = target.encoder.tokenizer.get_vocab().get(text)
    return token if token in target.encoder.control_ids else None
