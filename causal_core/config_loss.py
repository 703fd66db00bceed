"""The loss section of the configuration: presets and weights of the terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import (
    Field,
    model_validator,
)

from causal_core import config_names
from causal_core.config_sections import MOST_WEIGHT, Section

ContrastiveForm = Literal["causal_contrastive", "info_nce", "triplet"]
LossPreset = Literal["default", "contrastive", "task_only"]

# Weights by preset and term, all others 0: what each is for stands in docs/losses.md.
LOSS_PRESETS: dict[LossPreset, dict[str, float]] = {
    "default": {"task": 1.0, "robust": 1.0, "invariance": 1.0},
    "contrastive": {"task": 1.0, "causal": 0.5, "spurious": 0.5},
    "task_only": {"task": 1.0},
}
_WEIGHT = "lambda_"  # what the name of a term's weight begins with


def _weight(term: str, what: str) -> Any:
    default = LOSS_PRESETS["default"].get(term, 0.0)
    return Field(default, ge=0, le=MOST_WEIGHT, description=what)


class LossSection(Section):
    """Weights of the terms. A preset fills in the weights that are not given."""

    preset: LossPreset = Field(
        "default", description="Weights by what a run is for; see the table below."
    )
    lambda_task: float = _weight("task", "Answers clean inputs as expected.")
    lambda_causal: float = _weight(
        "causal", "Pulls the representations of two benign inputs together."
    )
    lambda_spurious: float = _weight(
        "spurious", "Pushes those of a clean and an attacked input apart."
    )
    lambda_robust: float = _weight("robust", "Gives the safe answer under attack.")
    lambda_invariance: float = _weight(
        "invariance", "Answers under attack as without it, token by token."
    )
    lambda_preference: float = _weight("preference", "The safe answer over what the attack wants.")
    lambda_anchor: float = _weight("anchor", "Keeps clean answers near those of the base.")
    beta: float = Field(
        0.5, gt=0, le=MOST_WEIGHT, description="Sharpness of `preference`, per nat."
    )
    worst_case: float | None = Field(
        None,
        gt=0,
        le=MOST_WEIGHT,
        description="Temperature, in nats, of the soft worst case over a row's injections: small "
        "trains the one that fares worst. None: all of them alike.",
    )
    contrastive: ContrastiveForm = Field(
        "causal_contrastive", description="How pull and push are computed: docs/losses.md."
    )
    temperature: float = Field(
        0.07,
        gt=0,
        le=MOST_WEIGHT,
        description="Of the contrastive terms: cosines are divided by it.",
    )
    margin: float = Field(
        0.5, ge=0, le=MOST_WEIGHT, description="Margin of the form `triplet`, in cosine units."
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            data = config_names.current_section("loss", data)
            preset = data.get("preset", "default")
            # What is no preset's name is refused by the field itself; it may be a list.
            if isinstance(preset, str) and preset in LOSS_PRESETS:
                weights = LOSS_PRESETS[preset]
                terms = cls.terms()
                return {**{_WEIGHT + t: weights.get(t, 0.0) for t in terms}, **data}
        return data

    @model_validator(mode="after")
    def _joint_kinds_have_one_weight(self) -> LossSection:
        if self.contrastive != "causal_contrastive" and self.lambda_spurious > 0:
            raise ValueError(
                f"contrastive={self.contrastive} pulls U' and pushes U* in one term, weighted by "
                f"lambda_causal; lambda_spurious={self.lambda_spurious} would have no term to "
                "weigh: set it to 0"
            )
        if not any(self.weights().values()):
            raise ValueError("all loss weights are 0: nothing would be trained; set lambda_task")
        return self

    @classmethod
    def terms(cls) -> list[str]:
        """Names of the terms that have a weight: those of `causal_core.loss.objective.TERMS`."""
        return [f.removeprefix(_WEIGHT) for f in cls.model_fields if f.startswith(_WEIGHT)]

    def weights(self) -> dict[str, float]:
        """Weight of each term by its name in metrics."""
        return {term: getattr(self, _WEIGHT + term) for term in self.terms()}

    def asks_for_counterfactual(self) -> str | None:
        """The first positive weight of a term on representations, which has U' in it."""
        names = (_WEIGHT + term for term in ("causal", "spurious"))
        return next((name for name in names if getattr(self, name) > 0), None)
