"""Detectors of attacked prompts: a model's own read-outs, and those that see no model, measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from causal_core.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from causal_core.config import Config
    from causal_core.evaluation.guard import Fitted, Prompts
    from causal_core.evaluation.representations import Represented
    from causal_core.evaluation.subject import Subject

LENGTH, WORDS = "length", "words"  # detectors that see no model
_LEAST_ROWS = 8


@dataclass(frozen=True)
class Detector:
    """One fitted way to tell attacked prompts, and how it sees those of any data set."""

    fitted: Fitted
    words: dict[str, int]  # of the bag-of-words detector

    def scores(self, name: str, found: Represented) -> np.ndarray:
        """[n]: how suspicious each prompt is; `name` is that of the detector."""
        return self.fitted.read_out.scores(_features(name, found, self.words))


@dataclass(frozen=True)
class Measured:
    """Detectors by name, those of the model first, and the prompts that they are about."""

    detectors: dict[str, Detector]
    fitting: Represented  # what they were fitted on
    tests: dict[str, Represented]  # by test set

    def own(self) -> dict[str, Detector]:
        """Those that are read off the model."""
        return {k: v for k, v in self.detectors.items() if k not in (LENGTH, WORDS)}

    def scores(self, name: str) -> dict[str, np.ndarray]:
        """How suspicious each prompt of a test set is, by detector."""
        return {k: found.scores(k, self.tests[name]) for k, found in self.detectors.items()}

    def figures(self, name: str) -> dict[str, Any]:
        """What the detectors find on a test set, in plain values."""
        from causal_core.evaluation.guard import worth

        found = self.tests[name]
        prompts = found.seen_as(found.vectors["mean"])
        return {
            "clean": int((~found.attacked).sum()),
            "attacked": int(found.attacked.sum()),
            "detectors": {
                k: asdict(worth(scores, prompts, self.detectors[k].fitted.read_out.threshold))
                for k, scores in self.scores(name).items()
            },
        }


def measure_detectors(
    subject: Subject,
    config: Config,
    fit: Sequence[str],
    tests: Mapping[str, list[str]],
    false_positives: float,
) -> Measured:
    """Fits a model's detectors on some rows and shows them the prompts of test sets.

    Args:
        fit: Files of the rows to fit them on.
        tests: Files by test set.
        false_positives: Share of clean prompts that may lie above a threshold.

    Raises:
        UserError: too few rows with attacks.
    """
    seen = _represented(subject, config, fit, tests)
    fitting = seen.pop("")
    return Measured(_fitted(fitting, subject.head_trained, false_positives), fitting, seen)


def _represented(
    subject: Subject, config: Config, fit: Sequence[str], tests: Mapping[str, list[str]]
) -> dict[str, Represented]:
    """All prompts by test set, and under the empty name those to fit on."""
    import torch

    from causal_core.device import prepare_device
    from causal_core.evaluation.representations import represent
    from causal_core.evaluation.subject import in_memory
    from causal_core.tokens.run_data import load_encoder, load_test_set

    gpu = config.resources.gpus_per_worker > 0
    device = torch.device("cuda", 0) if gpu else torch.device("cpu")
    prepare_device(device, config.resources.threads, config.resources.gpus_per_worker)
    encoder = load_encoder(config)
    sets = {name: load_test_set(config, encoder, paths) for name, paths in tests.items()}
    sets[""] = load_test_set(config, encoder, list(fit))
    for name, dataset in sets.items():
        attacked = sum(bool(dataset.injections_of(row)) for row in range(len(dataset)))
        least = _LEAST_ROWS if not name else 1
        if attacked < least:
            what = f"test set {name}" if name else "the rows to fit a detector on"
            raise UserError(f"{what}: {attacked} rows have an attack, at least {least} are needed")
    (found,) = (
        {
            name: represent(model, dataset, device, config.evaluation.batch_tokens)
            for name, dataset in sets.items()
        }
        for _, model in in_memory([subject], device)
    )
    return found


def _fitted(
    fitting: Represented, head_trained: bool, false_positives: float
) -> dict[str, Detector]:
    from causal_core.evaluation.guard import fit_read_out, vocabulary
    from causal_core.evaluation.representations import HEAD, MEAN

    words = vocabulary(fitting.texts)
    names = ([HEAD] if head_trained else []) + [MEAN, LENGTH, WORDS]
    detectors = {}
    for name in names:
        prompts: Prompts = fitting.seen_as(_features(name, fitting, words))
        detectors[name] = Detector(fit_read_out(prompts, false_positives), words)
    return detectors


def _features(name: str, found: Represented, words: dict[str, int]) -> np.ndarray:
    from causal_core.evaluation.guard import bags_of_words, lengths

    if name == LENGTH:
        return lengths(found.tokens)
    if name == WORDS:
        return bags_of_words(found.texts, words)
    return found.vectors[name]
