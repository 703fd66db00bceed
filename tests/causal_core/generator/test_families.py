"""Attack families are files: any of them can be read, and a wrong one is refused by name."""

from __future__ import annotations

from random import Random

import pytest
import yaml

from causal_core.errors import UserError
from causal_core.generator import families as module
from causal_core.generator.families import DISGUISES, families, families_of, filled, read_family

WORDINGS = [f"Please do {n}: {{payload}}" for n in range(25)]
GOOD = {"technique": "t", "use": "seen", "wordings": WORDINGS}


def written(folder, name="kindness", **changes):
    path = folder / f"{name}.yaml"
    tree = {key: value for key, value in {**GOOD, **changes}.items() if value is not ...}
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def test_there_are_many_families_of_many_wordings():
    assert len(families()) >= 12
    for family in families().values():
        given = family.wordings
        assert len({*given.train, *given.validation, *given.test}) >= 25
    assert {f.use for f in families_of("test_novel")} == {"novel"}
    for split in ("train", "validation", "test_seen"):
        assert {f.use for f in families_of(split)} == {"seen"}
    # What published test sets hold back from training, ours does, too.
    assert {"fake_completion", "combined"} <= {f.name for f in families_of("test_novel")}


def test_to_add_a_family_is_to_add_a_file(tmp_path, monkeypatch):
    for path in module.FOLDER.glob("*.yaml"):
        (tmp_path / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    written(tmp_path)
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    families.cache_clear()
    try:
        assert "kindness" in {family.name for family in families_of("train")}
    finally:
        families.cache_clear()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"technique": ...}, "has the fields"),
        ({"colour": "red"}, "colour"),
        ({"use": "sometimes"}, "seen or novel"),
        ({"technique": 3}, "technique is no str"),
        ({"wordings": "one"}, "wordings is no list"),
        ({"wordings": WORDINGS[:9]}, "9 wordings"),
        ({"wordings": [*WORDINGS[:-1], WORDINGS[0]]}, "no two of them the same"),
        ({"wordings": [*WORDINGS, "No slot."]}, "exactly one"),
        ({"wordings": [*WORDINGS, "{payload} {mood}"]}, "nothing fills the slot {mood}"),
        ({"wordings": [*WORDINGS, "{rune:x} {payload}"]}, "nothing fills the slot {rune}"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, changes, reason):
    with pytest.raises(UserError) as error:
        read_family(written(tmp_path, **changes))
    assert reason in str(error.value) and "kindness.yaml" in str(error.value)


def test_what_is_filled_in_is_not_looked_at_again():
    hostile = "{separator} {w} {0.__class__} {{payload}} \\1"
    text = filled("A {payload} {leet:ate} {unknown}", {"payload": hostile}, Random(0))
    assert text == f"A {hostile} 473 {{unknown}}"


@pytest.mark.parametrize("name", DISGUISES)
def test_a_disguise_is_text_of_another_look(name):
    assert DISGUISES[name]("ignore it") not in ("", "ignore it")


def test_a_wording_is_one_of_its_splits_and_named():
    for family in families_of("train"):
        given = family.wordings
        for split, texts in (("train", given.train), ("validation", given.validation),
                             ("test_seen", given.test)):  # fmt: skip
            identity, text = family.wording(split, Random(1))
            assert text in texts
            number = int(identity.removeprefix(f"{family.name}/"))
            assert (*given.train, *given.validation, *given.test)[number] == text
