"""The demo data: triplets with exact answers and named attacks, in leak-free splits.

Row `i` of a split depends on the seed, the split and the rows before it, never on how many rows
are asked for: a larger data set begins with the smaller one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random

from causal_core.data.leaks import LeakReport, check_leaks
from causal_core.data.schema import DataError, RowProblem, Triplet
from causal_core.generator.compose import (
    CANARY_SENTENCE,
    LEAK,
    PAYLOADS,
    PlainRow,
    Slot,
    compose,
    slot_of,
)
from causal_core.generator.families import families_of
from causal_core.generator.look_alikes import TRIGGER_SENTENCES
from causal_core.generator.tasks import TASKS, Task, instruction
from causal_core.generator.tasks.inputs import Sample
from causal_core.generator.vocabulary import SPLITS, TEST_NOVEL, TRAIN, Pools, pools

SOURCE = "causal-ray generator"
LICENSE = "Apache-2.0"

# Two rows of 13 (15 %) carry trigger words.
_TRIGGER_CYCLE = 13
_TRIGGER_SLOTS = (4, 10)
_MAX_ATTEMPTS = 1000
# Rows of the split that serve as other tasks in attacks.
_OTHERS = 256
# A prime: the further attacks of a row are of other families, positions and payloads.
NEXT_ATTACK = 1009


@cache
def _schedule(split: str) -> tuple[Task, ...]:
    """Every task of a split in as many slots as it has weight, spread evenly over the cycle."""
    tasks = [task for task in TASKS if split == TEST_NOVEL or not task.held_out]
    slots = [
        ((turn + 0.5) / task.weight, number, task)
        for number, task in enumerate(tasks)
        for turn in range(task.weight)
    ]
    return tuple(task for _, _, task in sorted(slots, key=lambda slot: slot[:2]))


def generate_dataset(
    sizes: Mapping[str, int], seed: int, attacks_per_row: int = 1
) -> dict[str, list[Triplet]]:
    """Generate the splits named in `sizes` (rows each) and prove that they do not leak.

    The same sizes and seed give the same rows in any process; rows with more attacks begin with
    those of fewer. Only training rows have more than one.

    Raises:
        ValueError: an unknown split or a negative size.
        DataError: more rows asked of a split than its words can make, or a leak between splits.
    """
    dataset = {
        split: list(generate_split(split, size, seed, attacks_per_row if split == TRAIN else 1))
        for split, size in sizes.items()
    }
    raise_on_leaks(check_leaks(dataset))
    return dataset


def raise_on_leaks(report: LeakReport) -> None:
    """Raise a `DataError` that names each leak of the report, if there are any."""
    if report.ok:
        return
    raise DataError(
        [
            RowProblem(
                f"{found.split_a} / {found.split_b}",
                0,
                found.kind.value,
                f"{found.count} shared, such as {found.examples[0]!r}",
            )
            for found in report.findings
        ]
    )


def generate_split(
    split: str,
    size: int,
    seed: int,
    attacks_per_row: int = 1,
    payloads: Sequence[str] = PAYLOADS,
    without: Sequence[str] = (),
) -> Iterator[Triplet]:
    """Yield the first `size` triplets of one split; no benign input occurs twice in it.

    Args:
        payloads: What its attacks may ask for.
        without: Families that no attack is of: the same rows, and the same attacks but theirs.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}")
    if size < 0:
        raise ValueError(f"size of {split} is {size}; it must be 0 or more")
    names = [family.name for family in families_of(split)]
    if unknown := sorted(set(without) - set(names)):
        raise ValueError(
            f"{split} has no attack family {', '.join(unknown)} to leave out; it has "
            f"{', '.join(names)}"
        )
    if set(without) == set(names):
        raise ValueError(f"every attack family of {split} is left out; leave at least one in")
    kinds = _Kinds(split, tuple(payloads), tuple(without))
    used: set[str] = set()
    for index in range(size):
        yield _fresh_triplet(index, seed, attacks_per_row, kinds, used)


@dataclass(frozen=True)
class _Kinds:
    """What the attacks of a split may be."""

    split: str
    payloads: tuple[str, ...]
    without: tuple[str, ...]  # families

    def slot(self, number: int) -> Slot:
        return slot_of(number, self.split, self.payloads, self.without)


def _fresh_triplet(
    index: int, seed: int, attacks_per_row: int, kinds: _Kinds, used: set[str]
) -> Triplet:
    """Draw until the inputs are new and each witness is found nowhere but in its attack."""
    for attempt in range(_MAX_ATTEMPTS):
        base = f"{seed}/{kinds.split}/{index}/{attempt}"
        triplet = _draw(index, seed, attacks_per_row, kinds, base)
        if triplet is None:
            continue
        inputs = {triplet.benign_input, triplet.benign_cf_input or ""}
        if inputs & used:
            continue
        used |= inputs
        return triplet
    reason = f"its words make no more than {index} rows without a repetition; ask for fewer"
    raise DataError.in_file(kinds.split, reason)


def _draw(index: int, seed: int, attacks: int, kinds: _Kinds, base: str) -> Triplet | None:
    """One candidate for a row, or None if its parts do not go together."""
    split = kinds.split
    words, rng = pools(split), Random(base)
    # A step per round of tasks: every task meets every kind of attack.
    schedule = _schedule(split)
    number = index + index // len(schedule)
    task = schedule[index % len(schedule)]
    key = rng.choice(task.keys)
    triggers = index % _TRIGGER_CYCLE in _TRIGGER_SLOTS

    system, request = instruction(task, key, split, rng)
    canary = words.canary(rng) if kinds.slot(number).payload == LEAK else None
    if canary is not None:
        system = f"{system} {CANARY_SENTENCE.format(w=canary)}"
    benign, counterfactual = (_input(task, key, words, triggers, rng) for _ in range(2))
    if benign.text == counterfactual.text:
        return None
    row = _plain(task, system, request, benign)
    injections = []
    for attack in range(attacks):
        own = Random(f"{base}/{attack}")
        injection = compose(
            row,
            other_tasks(split, seed),
            kinds.slot(number + attack * NEXT_ATTACK),
            split,
            own,
            canary,
            task.decoy(own, words, key),
        )
        if injection is None:
            return None
        injections.append(injection)
    return Triplet(
        id=f"{split}-{index:06d}",
        system_instruction=system,
        benign_input=benign.text,
        benign_output=benign.answer,
        benign_cf_input=counterfactual.text,
        benign_cf_output=counterfactual.answer,
        injections=tuple(injections),
        task=task.name,
        split=split,
        has_trigger_words=triggers,
        source=SOURCE,
        license=LICENSE,
    )


@cache
def other_tasks(split: str, seed: int) -> tuple[PlainRow, ...]:
    """Rows of a split that are no rows of its data: the tasks that attacks in it ask for."""
    words, schedule, rows = pools(split), _schedule(split), []
    for number in range(_OTHERS):
        rng = Random(f"{seed}/{split}/other/{number}")
        task = schedule[number % len(schedule)]
        key = rng.choice(task.keys)
        system, request = instruction(task, key, split, rng)
        sample = task.draw(rng, words, key)
        rows.append(
            PlainRow(system, sample.text, sample.answer, task.name, task.shape, request, task.noun)
        )
    return tuple(rows)


def _plain(task: Task, system: str, request: str, sample: Sample) -> PlainRow:
    return PlainRow(system, sample.text, sample.answer, task.name, task.shape, request, task.noun)


def _input(task: Task, key: str, words: Pools, triggers: bool, rng: Random) -> Sample:
    """An input of the task, with a harmless sentence of attack words in it if `triggers`."""
    sample = task.draw(rng, words, key)
    if not triggers:
        return sample
    sentence = rng.choice(TRIGGER_SENTENCES.of(words.split))
    sentence = sentence.format(topic=rng.choice(words.trigger_topics))
    at = rng.randint(0, len(sample.segments))
    return sample._replace(segments=(*sample.segments[:at], sentence, *sample.segments[at:]))
