"""What is saved as trained has been trained: every trainable tensor gets a gradient."""

from __future__ import annotations

from causal_core.config import LossSection
from causal_core.engines.base import Engine
from causal_core.errors import ModelError
from causal_core.loss.objective import is_contrastive

_A, _B = ".lora_A.", ".lora_B."


def check_gradients(engine: Engine, loss: LossSection) -> bool:
    """After the first backward of a run; False where no tensor has a gradient, which says nothing.

    A matrix A behind a B that is still zero has none, nor has the head without a weighted term on
    representations (or with a margin that all triplets keep), nor an expert that no token of the
    batch was sent to. Collective.

    Raises:
        ModelError: names the first of the others.
    """
    untouched = set(engine.without_gradient())
    if len(untouched) == len(engine.shapes):
        return False
    head_may_rest = not is_contrastive(loss) or loss.contrastive == "triplet"
    dead = [
        name
        for name in engine.shapes
        if name in untouched
        and not (_A in name and name.replace(_A, _B) not in untouched)
        and not (head_may_rest and name.startswith("projection."))
        and ".experts." not in name
    ]
    if dead:
        raise ModelError(
            f"{dead[0]} is to be trained, but gets no gradient from the loss ({len(dead)} of "
            f"{len(engine.shapes)} tensors): it would be saved as it began. Leave its module out "
            "of lora.target_modules"
        )
    return True
