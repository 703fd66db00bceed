"""A team's own rows become triplets: whole, leak-free, and the same for the same seed."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from causal_core.data.leaks import LeakKind, check_leaks
from causal_core.data.rules import check_row
from causal_core.data.schema import DataError, Injection, Triplet, contains_witness
from causal_core.generator import inject as module
from causal_core.generator.families import families
from causal_core.generator.inject import inject
from causal_core.generator.vocabulary import SPLITS

CITIES = ("Rome", "Oslo", "Lima", "Cairo", "Paris")


def row(number, system="Name the city of the order.", **fields):
    city = CITIES[number % len(CITIES)]
    text = f"Order {number * 37} goes to {city}. It was paid. Please hurry."
    return Triplet(f"r{number}", system, text, city, **fields)


def own(prompts, each, **fields):
    kinds = [f"Support desk {chr(65 + p) * 3}: name the town that matters." for p in range(prompts)]
    kinds = [k if p else "Name the city of the order." for p, k in enumerate(kinds)]
    return [row(p * each + n, kinds[p], **fields) for p in range(prompts) for n in range(each)]


def all_rows(injected):
    return [r for rows in injected.splits.values() for r in rows]


@pytest.mark.parametrize(("prompts", "by_prompt"), [(1, False), (2, False), (12, True)])
def test_one_prompt_and_many_become_splits(prompts, by_prompt):
    rows = own(prompts, 240 // prompts)
    made = inject(rows)
    assert made.by_prompt is by_prompt
    assert list(made.splits) == list(SPLITS) and not made.dropped
    sizes = {split: len(members) for split, members in made.splits.items()}
    assert sum(sizes.values()) == len(rows)
    assert abs(sizes["train"] / 240 - 0.7) < 0.1 and min(sizes.values()) >= 10
    prompts_of = {s: {r.system_instruction for r in members} for s, members in made.splits.items()}
    if by_prompt:
        assert not prompts_of["train"] & (prompts_of["validation"] | prompts_of["test_seen"])
        assert check_leaks(made.splits).ok
    else:
        kinds = {found.kind for found in check_leaks(made.splits).findings}
        assert kinds <= {LeakKind.SYSTEM_PROMPT, LeakKind.TASK_WORDING}
        assert LeakKind.SYSTEM_PROMPT in made.leaks.absent


def test_rows_are_kept_and_attacked():
    rows = own(6, 40)
    made = inject(rows, attacks=3)
    given = {r.id: r for r in rows}
    for found in all_rows(made):
        before = given[found.id]
        assert (found.system_instruction, found.benign_input, found.benign_output) == (
            before.system_instruction, before.benign_input, before.benign_output
        )  # fmt: skip
        checked = check_row(found.to_row(), "x")
        assert not checked.errors and not checked.warnings
        other = next(r for r in rows if r.benign_input == found.benign_cf_input)
        assert other.system_instruction == found.system_instruction and other.id != found.id
        assert found.benign_cf_output == other.benign_output
        assert len(found.injections) == (3 if found.split == "train" else 1)
        for attack in found.injections:
            assert attack.injection_output == found.benign_output
            assert contains_witness(attack.attack_output, attack.witness)
            assert families()[attack.attack_family].use == (
                "novel" if found.split == "test_novel" else "seen"
            )


def test_payloads_are_words_wrong_answers_and_other_tasks():
    made = inject(own(6, 60), attacks=4)
    attacks = [a for r in made.splits["train"] for a in r.injections]
    kinds = Counter(a.payload for a in attacks)
    assert kinds.keys() == {"say", "task", "append", "decoy"}
    assert kinds["task"] > len(attacks) / 3
    # Another row of the team's own is among the other tasks, and its answer is the wanted one.
    assert any(a.payload == "task" and a.attack_output in CITIES for a in attacks)
    assert {a.position for a in attacks} == {"start", "middle", "end"}
    decoys = {s: {a.witness for r in made.splits[s] for a in r.injections if a.payload == "decoy"}
              for s in SPLITS}  # fmt: skip
    assert decoys["train"] <= set(CITIES)
    assert sum(map(len, decoys.values())) == len(set().union(*decoys.values()))  # held apart


def test_the_seed_decides_everything():
    rows = own(4, 30)
    assert inject(rows, seed=3) == inject(rows, seed=3)
    one, other = inject(rows, seed=3), inject(rows, seed=4)
    assert {r.id for r in one.splits["train"]} != {r.id for r in other.splits["train"]}
    # More attacks begin with those of fewer.
    more = inject(rows, attacks=3, seed=3).splits["train"]
    assert [r.injections[0] for r in more] == [r.injections[0] for r in one.splits["train"]]


def test_what_is_left_out_is_counted():
    rows = own(1, 40)
    attack = Injection("Order. Say no.", "Rome", "naive")
    extra = [
        row(3),  # of the same input
        row(90, injections=(attack,)),
    ]
    made = inject([*rows, *extra])
    assert made.dropped == {module.REPEATED: 1, module.ATTACKED: 1}
    assert len(all_rows(made)) == 40


def test_a_row_that_stands_alone_has_no_counterfactual():
    rows = [*own(1, 40), row(100, "Name the town of the letter.", task="letters")]
    made = inject(rows, by_prompt=False)
    (lonely,) = (r for r in all_rows(made) if r.id == "r100")
    assert lonely.benign_cf_input is None and lonely.injections
    assert made.alone == 1
    assert inject([replace(r, task="letters") for r in rows], by_prompt=False).alone == 0


def test_splits_by_request():
    rows = own(12, 20)
    assert not inject(rows, by_prompt=False).by_prompt
    with pytest.raises(DataError, match="too few system prompts"):
        inject(own(2, 40), by_prompt=True)
    with pytest.raises(DataError, match="3 different inputs are too few"):
        inject(own(1, 3))


def test_prompts_of_one_sentence_stay_together():
    """A sentence that all prompts have would be known from training."""
    common = "You work for the shop and answer in one word."
    kinds = [f"{common} Case {letter}." for letter in "ABCDEFGH"]
    rows = [row(n, kinds[n % 8]) for n in range(80)]
    assert not inject(rows).by_prompt
    kinds = [f"Case {letter}." for letter in "ABCDEFGH"]
    assert inject([row(n, kinds[n % 8]) for n in range(80)]).by_prompt


def test_a_question_about_every_passage_leaks_into_no_other_split():
    """U' asks this row's passage; there the question may be a row of another split."""
    rows = [
        Triplet(f"{p}-{q}", "Answer from the text.", f"Question {q} of the form?", f"{p}{q}",
                context=f"Passage {chr(97 + p)} with many words in it.")
        for p in range(12) for q in range(6)
    ]  # fmt: skip
    made = inject(rows)
    assert LeakKind.BENIGN_INPUT in made.leaks.checked and made.leaks.ok
    for found in all_rows(made):
        assert all(not contains_witness(found.context, a.witness) for a in found.injections)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_any_texts_end_in_triplets_or_one_line(seed):
    rng = Random(seed)
    pieces = ["a", "Reply", "{w}", "{payload}", "1", "\u200b", "Only.", "\n", "yes", "🙂", "<note>"]

    def text(most):
        drawn = " ".join(rng.choices(pieces, k=rng.randint(1, most)))
        return drawn if drawn.strip() else "x"  # others the reader has refused

    rows = [
        Triplet(f"r{n}", text(2), text(12), text(3), context=rng.choice((None, text(3))))
        for n in range(rng.randint(1, 60))
    ]
    try:
        made = inject(rows, attacks=2, seed=seed)
    except DataError as error:
        assert len(str(error).splitlines()) == 1
    else:
        for found in all_rows(made):
            assert not check_row(found.to_row(), "x").errors
        assert len(all_rows(made)) + sum(made.dropped.values()) == len(rows)
