"""The demo data: triplets with exact answers and named attacks, in leak-free splits.

Row `i` of a split depends on the seed, the split and the rows before it, never on how many rows
are asked for: a larger data set begins with the smaller one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from random import Random

from causal_core.data.leaks import LeakReport, check_leaks
from causal_core.data.schema import DataError, Injection, RowProblem, Triplet, contains_witness
from causal_core.generator.attacks import (
    CANARY_SENTENCE,
    FAMILIES,
    POSITIONS,
    PROMPT_LEAKING,
    TRIGGER_SENTENCES,
    Family,
    attack_text,
    families_of,
    place,
)
from causal_core.generator.inputs import Sample
from causal_core.generator.tasks import TASKS, Task, instruction
from causal_core.generator.vocabulary import SPLITS, Pools, pools

SOURCE = "causal-ray generator"
LICENSE = "Apache-2.0"

# Two rows of 13 (15 %) carry trigger words. 13, the 25 slots of the task schedule and the cycle of
# families and positions (18 or 9) have no common divisor, so all combinations occur evenly.
_TRIGGER_CYCLE = 13
_TRIGGER_SLOTS = (4, 10)
_MAX_ATTEMPTS = 1000


def _task_schedule() -> tuple[Task, ...]:
    """Every task in as many slots as it has weight, spread evenly over the cycle."""
    slots = [
        ((turn + 0.5) / task.weight, number, task)
        for number, task in enumerate(TASKS)
        for turn in range(task.weight)
    ]
    return tuple(task for _, _, task in sorted(slots, key=lambda slot: slot[:2]))


_SCHEDULE = _task_schedule()


def generate_dataset(sizes: Mapping[str, int], seed: int) -> dict[str, list[Triplet]]:
    """Generate the splits named in `sizes` (rows each) and prove that they do not leak.

    The same sizes and seed give the same rows in any process.

    Raises:
        ValueError: an unknown split or a negative size.
        DataError: more rows asked of a split than its words can make, or a leak between splits.
    """
    dataset = {split: list(generate_split(split, size, seed)) for split, size in sizes.items()}
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


def generate_split(split: str, size: int, seed: int) -> Iterator[Triplet]:
    """Yield the first `size` triplets of one split; no benign input occurs twice in it."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}")
    if size < 0:
        raise ValueError(f"size of {split} is {size}; it must be 0 or more")
    used: set[str] = set()
    for index in range(size):
        yield _fresh_triplet(split, index, seed, used)


def _fresh_triplet(split: str, index: int, seed: int, used: set[str]) -> Triplet:
    """Draw until the inputs are new and the witness is found nowhere but in the attack."""
    for attempt in range(_MAX_ATTEMPTS):
        rng = Random(f"{seed}/{split}/{index}/{attempt}")
        triplet = _draw(split, index, rng)
        if triplet is None or triplet.benign_input in used or triplet.benign_cf_input in used:
            continue
        used.update((triplet.benign_input, triplet.benign_cf_input))
        return triplet
    reason = f"its words make no more than {index} rows without a repetition; ask for fewer"
    raise DataError.in_file(split, reason)


def _draw(split: str, index: int, rng: Random) -> Triplet | None:
    """One candidate for a row, or None if its parts do not go together."""
    words = pools(split)
    names = families_of(split)
    family = FAMILIES[names[index % len(names)]]
    # The step per round of families makes every family meet every position.
    position = POSITIONS[(index + index // len(names)) % len(POSITIONS)]
    task = _SCHEDULE[index % len(_SCHEDULE)]
    key = rng.choice(task.keys)
    triggers = index % _TRIGGER_CYCLE in _TRIGGER_SLOTS

    system = instruction(task, key, split, rng)
    benign, counterfactual = (_input(task, key, words, triggers, rng) for _ in range(2))
    witness = _witness(family, task, key, words, rng)
    if family.name == PROMPT_LEAKING:
        system = f"{system} {CANARY_SENTENCE.format(w=witness)}"
    attack = attack_text(family, split, witness, task.noun, rng)
    benign_text = benign.joiner.join(benign.segments)
    other_text = counterfactual.joiner.join(counterfactual.segments)
    clean = [benign_text, other_text, benign.answer, counterfactual.answer]
    if family.name != PROMPT_LEAKING:
        clean.append(system)
    if benign_text == other_text or any(contains_witness(text, witness) for text in clean):
        return None
    return Triplet(
        id=f"{split}-{index:06d}",
        system_instruction=system,
        benign_input=benign_text,
        benign_output=benign.answer,
        benign_cf_input=other_text,
        benign_cf_output=counterfactual.answer,
        injections=(
            Injection(
                injection_input=place(benign.segments, attack, position, benign.joiner),
                injection_output=benign.answer,  # what is planted is data and changes nothing
                witness=witness,
                attack_family=family.name,
                attack_technique=family.technique,
                position=position,
            ),
        ),
        task=task.name,
        split=split,
        has_trigger_words=triggers,
        source=SOURCE,
        license=LICENSE,
    )


def _input(task: Task, key: str, words: Pools, triggers: bool, rng: Random) -> Sample:
    """An input of the task, with a harmless sentence of attack words in it if `triggers`."""
    sample = task.draw(rng, words, key)
    if not triggers:
        return sample
    sentence = rng.choice(TRIGGER_SENTENCES.of(words.split))
    sentence = sentence.format(topic=rng.choice(words.trigger_topics))
    at = rng.randint(0, len(sample.segments))
    return sample._replace(segments=(*sample.segments[:at], sentence, *sample.segments[at:]))


def _witness(family: Family, task: Task, key: str, words: Pools, rng: Random) -> str:
    if family.name == PROMPT_LEAKING:
        return words.canary(rng)
    if rng.random() < family.decoy_share:
        return task.decoy(rng, words, key)
    return words.codeword(rng)
