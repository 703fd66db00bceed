"""What a kind of attack takes beside the model: rows to tune on, checkpoints, a suffix to start."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from causal_core.attack.kinds import Kind
from causal_core.attack.suffix import LONGEST, TUNED_ON
from causal_core.attack.warm import Way
from causal_core.checkpoints.contents import read_manifest
from causal_core.checkpoints.store import CheckpointStore, checkpoint_location
from causal_core.config import Config
from causal_core.config_file import recorded_config
from causal_core.data.schema import Triplet
from causal_core.errors import UserError
from causal_core.evaluation.subject import Subject
from causal_core.files import read_small
from causal_core.report.attacks import read_attack
from causal_core.tokens.dataset import TripletDataset
from causal_core.tokens.run_data import load_encoder, load_split
from causal_core.visible_text import shown

MOST_BYTES = 2**28  # of a search's record


@dataclass(frozen=True)
class Along:
    """The checkpoints on the way to what is attacked."""

    way: Way = ()
    weights: tuple[str, ...] = ()  # sha256 of each checkpoint's, the base left out


@dataclass(frozen=True)
class Looked:
    """How far a search looks."""

    data: str  # the test set
    rows: int  # at most
    seed: int
    level: int  # the last one


def refuse_smaller(place: Path, kind: str, now: Looked, models: set[str]) -> None:
    """Keeps the result of a larger attack, or of other rows, from a quick look.

    Raises:
        UserError: what is there is of other rows, of more, or of models that are not attacked now.
    """
    earlier = read_attack(place, kind)
    if earlier is None:
        return
    levels = [point["budget"] for points in earlier["curves"].values() for point in points]
    was = Looked(earlier["data"], earlier["rows"], earlier["seed"], max(levels, default=0))
    left_out = sorted(earlier["curves"].keys() - models)
    other = (was.data, was.seed) != (now.data, now.seed)
    if other or now.rows < was.rows or now.level < was.level or left_out:
        lost = f", {', '.join(map(shown, left_out))} among its models" if left_out else ""
        raise UserError(
            f"{shown(str(place))} holds an attack of this kind on {was.rows} rows of "
            f"{shown(was.data)} with a budget of {was.level} and seed {was.seed}{lost}, which this "
            "one would replace: name another directory with --out, or give --force"
        )


def record_of(place: Path, kind: str, subject: str) -> Path:
    """Where the state of a search is kept."""
    return place / f"{kind}-{subject}.json"


@contextlib.contextmanager
def ways_of(subjects: Sequence[Subject], kind: Kind) -> Iterator[dict[str, Along]]:
    """The way to each subject by name, its checkpoints on this machine for the `with` block.

    A base has none, nor has any subject where the kind asks for none.

    Raises:
        UserError: a subject is no run, or a run without a checkpoint before the trained one.
    """
    with contextlib.ExitStack() as stack:
        yield {
            s.name: stack.enter_context(_way(s)) if kind.along and not s.is_base else Along()
            for s in subjects
        }


@contextlib.contextmanager
def _way(subject: Subject) -> Iterator[Along]:
    if subject.checkpoint is None:
        raise UserError(
            f"--kind warm tunes along a run's checkpoints, and {shown(subject.name)} is no run: "
            "attack it with --kind suffix"
        )
    run, trained = subject.checkpoint.parent, read_manifest(subject.checkpoint)
    storage = recorded_config(run, trust_remote_code=False).checkpoint.storage
    store = CheckpointStore(checkpoint_location(run, storage))
    with store.all_whole() as found:
        before = [
            (directory, manifest.weights())
            for directory, manifest in found
            if manifest.step < trained.step
            and manifest.base_fingerprint == trained.base_fingerprint
        ]
        if not before:
            raise UserError(
                f"{shown(subject.name)}: {shown(store.location)} has no whole checkpoint from "
                f"before step {trained.step}, which is attacked, so there is no way to tune along: "
                "train with a smaller checkpoint.every_steps and a larger checkpoint.keep_last, or "
                "attack with --kind suffix"
            )
        places = [directory for directory, _ in before]
        weights = [digest for _, digest in before]
        yield Along((None, *places, subject.checkpoint), (*weights, trained.weights()))


def tuning_rows(config: Config, kind: Kind) -> list[Triplet]:
    """Validation rows, where the kind tunes on some (`UserError`: there are none)."""
    if not kind.tuned:
        return []
    if not config.data.validation:
        raise UserError(
            "a universal suffix is tuned on validation rows, apart from those that it is tried on: "
            "name some with --set data.validation=FILE, or attack with --kind suffix"
        )
    dataset: TripletDataset = load_split(config, load_encoder(config), config.data.validation)
    return [dataset.triplet(index) for index in evenly(len(dataset), TUNED_ON)]


def evenly(length: int, count: int) -> list[int]:
    """At most `count` numbers below `length`, evenly spaced."""
    step = max(1, length // count)
    return list(range(0, length, step))[:count]


def universal_suffix(place: Path, subject: str, model: str, vocabulary: int) -> tuple[int, ...]:
    """The suffix that `--kind universal` found for the same weights; empty where it found none.

    Args:
        model: What the record must say that it attacked.
        vocabulary: How many tokens there are.
    """
    try:
        kept = json.loads(read_small(record_of(place, "universal", subject), MOST_BYTES))
        suffix = kept["rows"][0]["suffix"]
        same = kept["key"]["kind"] == "universal" and kept["key"]["model"] == model
    except (OSError, ValueError, KeyError, IndexError, TypeError, RecursionError):
        return ()
    if not same or not isinstance(suffix, list) or len(suffix) > LONGEST:
        return ()
    fine = all(type(token) is int and 0 <= token < vocabulary for token in suffix)
    return tuple(suffix) if fine else ()
